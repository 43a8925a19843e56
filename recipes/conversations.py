"""Make in-context conversations: a query and a gallery of look-alikes, at several levels of difficulty.

    python -m recipes.conversations                                             # persons, faces, pets, objects, drawn
    python -m recipes.conversations --root photos --category pet --tau_quantile 0.5 0.9 0.99
    python -m recipes.conversations --root photos --category pet --manifest runs/mypets/version_0/manifest.csv

Each category's conversations are written to OUT/<category>.parquet, with contact sheets beside it. On several
processes: `torchrun --nproc-per-node N -m recipes.conversations`.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.categories import CATEGORIES
from zoo.conversations.build import build
from zoo.conversations.embedding import SPLITS
from zoo.conversations.manifest import Conversation, Conversations, ImageRef
from zoo.conversations.mining import REASONS
from zoo.conversations.rule import GalleryRule
from zoo.data.cameras import without_useless_cameras
from zoo.data.images import UnreadableImage, read_image
from zoo.data.index import IdentityIndex
from zoo.data.join import Source, read_sources
from zoo.distributed import rank
from zoo.drawing import GREEN, GREY, RED, framed, save_png, sheet
from zoo.world import Faces, Objects, Persons, Pets

ENCODER = "general_mobilenetv3s050.world"
TAUS = (0.2, 0.5, 0.8)  # the paper's
SPLIT = {"val_share": 0.1, "test_share": 0.3, "split_seed": 0}  # of a folder without splits of its own
AT_MOST = ("val=500", "test=500")
WINGS = {"person": Persons, "face": Faces, "pet": Pets, "object": Objects}


def main(args: list[str] | None = None) -> int:
    """Make and write them; returns the exit status."""
    options = parser().parse_args(args)
    parallel = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized()
    if parallel:
        dist.init_process_group("gloo")
    console = Console(quiet=rank() > 0)
    try:
        run(options, console)
    except (ValueError, OSError) as error:
        if os.environ.get("ZOO_TRACEBACK"):
            raise
        sys.stderr.write(f"error: {error}\n")
        return 1
    finally:
        if parallel:
            dist.destroy_process_group()
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m recipes.conversations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = top.add_argument
    add("--root", type=Path, help="folder of images; without it the procedural world is drawn")
    add("--reader", help="layout of the folder; by default the one that fits")
    add("--manifest", type=Path, help="manifest.csv of an earlier run over the same folder: its images and its split")
    add("--val_share", type=float, help=f"share of identities to validate on, {SPLIT['val_share']} by default")
    add("--test_share", type=float, help=f"share of identities to test on, {SPLIT['test_share']} by default")
    add("--split_seed", type=int, help="which identities are held out, 0 by default; as data.split_seed of experts")
    add("--category", choices=sorted(CATEGORIES), help="what the images show; without --root, the wing to draw")
    add("--encoder", default=ENCODER, help="general encoder: a name on the shelf, a folder, or hf://user/repo")
    add("--k", type=int, nargs="+", default=[5], metavar="K", help="images in a gallery; or the fewest and the most")
    add("--tau", type=float, nargs="+", default=[], help="a level for each similarity that distractors exceed")
    add(
        "--tau_quantile",
        type=float,
        nargs="+",
        default=[],
        help="a level for each share of the pairs of two identities that are less similar; such as 0.9",
    )
    add("--split", nargs="+", choices=SPLITS, help="splits to make conversations of; by default all with images")
    add(
        "--at_most",
        nargs="+",
        default=[],
        metavar="[SPLIT=]N",
        help=f"most conversations of a level in each split, or in one, 0 for all; {' '.join(AT_MOST)} by default",
    )
    add("--per_query", type=int, default=1, help="conversations for each query")
    add("--no_match", type=float, default=0.0, help="share of conversations whose gallery has distractors only")
    add("--same_camera", action="store_true", help="positives may come from the query's camera")
    add("--seed", type=int, default=0, help="of all choices")
    add("--out", type=Path, default=Path("runs/conversations"), help="folder to write to")
    add("--sheets", type=int, default=6, help="conversations on a contact sheet; 0 for no sheets")
    add("--workers", type=int, default=2, help="processes that decode images")
    add("--device", default="cpu", help="where to embed and compare, such as cuda")
    return top


def run(options: argparse.Namespace, console: Console) -> None:
    """
    Raises:
        ValueError: flags that do not fit each other, or nothing was found at any level.
        OSError: folders that cannot be read or written.
    """
    refuse_impossible(options)
    rules, at_most = rules_of(options), limits_of(options.at_most)
    for category, index in sources(options):
        console.print(f"\n{category}: {escape(str(index.root))}: {index.describe()}", soft_wrap=True, highlight=False)
        made = build(
            index,
            options.encoder,
            rules,
            category,
            options.split,
            at_most,
            options.per_query,
            options.workers,
            options.device,
        )
        if rank() > 0:
            continue
        made.meta["split"] = split_of(options)
        path = options.out / f"{category}.parquet"
        made.save(path)
        report(made, console)
        console.print(f"{len(made):,} conversations, {made.meta['images']['count']:,} images: {escape(str(path))}")
        for picture, title in contact_sheets(made, options.sheets):
            save_png(picture, options.out / f"{category}_{title}.png")
            console.print(f"contact sheet: {escape(str(options.out / f'{category}_{title}.png'))}", soft_wrap=True)


def rules_of(options: argparse.Namespace) -> list[GalleryRule]:
    """A rule for each level."""
    if len(options.k) > 2:
        raise ValueError(f"--k has {len(options.k)} values. Give one, or the fewest and the most.")
    taus = options.tau or ([] if options.tau_quantile else TAUS)
    levels = [(tau, None) for tau in taus] + [(None, share) for share in options.tau_quantile]
    k = options.k[0] if len(options.k) == 1 else (options.k[0], options.k[1])
    return [
        GalleryRule(k, tau, share, not options.same_camera, options.no_match, options.seed) for tau, share in levels
    ]


def refuse_impossible(options: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: a number that is too small, a folder that is not there, or flags of a folder without one.
    """
    for flag, least in (("sheets", 0), ("workers", 0), ("per_query", 1)):
        if getattr(options, flag) < least:
            raise ValueError(f"--{flag} is {getattr(options, flag)}. Give a number from {least} on.")
    if options.root is not None and not options.root.is_dir():
        raise ValueError(f"--root {options.root} is no folder. Give the folder that holds the images.")
    shares = [flag for flag in SPLIT if getattr(options, flag) is not None]
    if options.manifest is not None and shares:
        raise ValueError(f"--manifest has a split of its own. Give either it or --{shares[0]}.")
    if options.manifest is not None and not options.manifest.is_file():
        raise ValueError(f"--manifest {options.manifest} is no file. Give the manifest.csv that a run has written.")
    if options.root is None and (options.manifest is not None or shares):
        raise ValueError(f"--{shares[0] if shares else 'manifest'} says how to split a folder. Give --root.")


def split_of(options: argparse.Namespace) -> dict[str, Any]:
    """Where the split came from: a manifest by name and hash, or how it was drawn where the folder has none."""
    if options.manifest is not None:
        return {
            "manifest": options.manifest.name,
            "sha256": hashlib.sha256(options.manifest.read_bytes()).hexdigest(),
        }
    return {flag: value if getattr(options, flag) is None else getattr(options, flag) for flag, value in SPLIT.items()}


def limits_of(entries: Sequence[str]) -> dict[str, int]:
    """["500"] or ["train=5000", "test=50"] -> split -> most conversations, AT_MOST where nothing else is said.

    Splits without a limit are left out.
    """
    limits: dict[str, int] = {}
    for entry in (*AT_MOST, *entries):
        split, _, number = entry.rpartition("=")
        if not number.isdigit():
            raise ValueError(f"--at_most {entry} is no limit. Write a number, or SPLIT=NUMBER, as in test=500.")
        limits |= dict.fromkeys([split] if split else SPLITS, int(number))
    return {split: number for split, number in limits.items() if number}


def sources(options: argparse.Namespace) -> Iterator[tuple[str, IdentityIndex]]:
    """Category and images: of the folder, or of each wing of the world."""
    if options.root is not None:
        if options.category is None:
            raise ValueError(f"What does {options.root} show? Give --category, one of {', '.join(sorted(CATEGORIES))}.")
        split = split_of(options) | {"seed": options.split_seed or 0}
        own = (
            None
            if options.manifest is not None
            else {name: split[name] for name in ("val_share", "test_share", "seed")}
        )
        source = Source(str(options.root), options.reader)
        yield options.category, without_useless_cameras(read_sources([source], own, options.manifest))
        return
    if options.reader is not None:
        raise ValueError(f"--reader {options.reader} has nothing to read. Give --root.")
    if options.category is not None and options.category not in WINGS:
        raise ValueError(f"The world has no {options.category}. It has {', '.join(WINGS)}; or give --root.")
    for category in [options.category] if options.category else WINGS:
        world = WINGS[category]()
        if rank() == 0:
            world.prepare()
        if dist.is_initialized():
            dist.barrier()
        index = read_sources([Source(str(world.prepare()), world.READER)])
        yield category, without_useless_cameras(index)


# ---------------------------------------------------------------------- what came out


def report(made: Conversations, console: Console) -> None:
    """A line for each split and level, what similarities there are, and images that were left out."""
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption=f"{', '.join(REASONS)}: queries skipped. distractors, positives: mean similarity to the query",
    )
    for heading in ("split", "level"):
        table.add_column(heading, no_wrap=True)
    for heading in ("tau", "made", *REASONS, "distractors", "positives"):
        table.add_column(heading, justify="right", no_wrap=heading not in REASONS)
    splits, levels = made.column("split"), made.column("level")
    for split, taus in made.meta["tau"].items():
        for level, tau in taus.items():
            part = made.select((splits == split) & (levels == level))
            counts = [f"{made.meta['skipped'][split][level][reason]:,}" for reason in REASONS]
            means = [f"{values.mean():.3f}" if len(values) else "" for values in similarities(part)]
            table.add_row(split, level, f"{tau:.3f}", f"{len(part):,}", *counts, *means)
    console.print(table)
    for split, row in made.meta["quantiles"].items():
        said = ", ".join(f"{100 * float(share):g}% up to {value:.3f}" for share, value in row.items())
        console.print(f"similarity of two identities, {split}: {said}", highlight=False, soft_wrap=True)
    if made.meta["unreadable"]:
        names = "\n  ".join(made.meta["unreadable"])
        console.print(f"{len(made.meta['unreadable'])} unreadable images were left out:\n  {escape(names)}")
    for name, what in (("copies", "copies of other images"), ("disputed", "files of more than one identity")):
        if made.meta[name]:
            first = escape(made.meta[name][0])
            console.print(f"{len(made.meta[name])} {what} were left out, such as {first}", soft_wrap=True)
    for sentence in made.lacking():
        console.print(f"warning: {sentence}", soft_wrap=True, highlight=False)


def similarities(part: Conversations) -> tuple[np.ndarray, np.ndarray]:
    """To the query: of all distractors, and of all positives."""
    wrong: list[float] = []
    right: list[float] = []
    for conversation in part:
        for place, similarity in enumerate(conversation.similarities, start=1):
            (right if place == conversation.answer else wrong).append(similarity)
    return np.array(wrong), np.array(right)


def contact_sheets(made: Conversations, rows: int) -> Iterator[tuple[Image.Image, str]]:
    """A sheet for each level, of the last split that has conversations, and its name; they are spread evenly."""
    splits, levels = made.column("split"), made.column("level")
    filled = [split for split in made.meta["tau"] if (splits == split).any()]
    if not filled:
        return
    split = filled[-1]
    for level in made.meta["tau"][split]:
        places = np.flatnonzero((splits == split) & (levels == level))
        if len(places) and rows:
            chosen = places[np.linspace(0, len(places) - 1, min(rows, len(places))).astype(int)]
            yield contact_sheet(made, chosen, f"{made[0].category}, {split}, {level}"), f"{split}_{level}"


def contact_sheet(made: Conversations, chosen: np.ndarray, title: str) -> Image.Image:
    """A row for each conversation: the query, then its gallery, the positive framed green."""
    pictures, captions = [], []
    for conversation in (made[int(place)] for place in chosen):
        pictures.append([framed(_picture(made.root, conversation.query), GREY)])
        captions.append([_said(conversation)])
        for place, (image, value) in enumerate(
            zip(conversation.gallery, conversation.similarities, strict=True), start=1
        ):
            pictures[-1].append(framed(_picture(made.root, image), GREEN if place == conversation.answer else RED))
            captions[-1].append(f"{value:.2f} {image.identity}")
    return sheet(pictures, captions, title)


def _said(conversation: Conversation) -> str:
    return f"{conversation.answer or 'no match'}: {conversation.query.identity}"


def _picture(root: Path, image: ImageRef) -> Image.Image:
    try:
        return read_image(root / image.path, image.box)
    except UnreadableImage:  # readable when it was embedded, gone since
        return Image.new("RGB", (112, 112), GREY)


if __name__ == "__main__":
    raise SystemExit(main())
