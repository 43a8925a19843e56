"""Make in-context conversations: a query and a gallery of look-alikes, at several levels of difficulty.

    python -m recipes.conversations                                             # persons, faces, pets, objects, drawn
    python -m recipes.conversations --root photos --category pet --tau_quantile 0.5 0.9 0.99
    python -m recipes.conversations --root photos --category pet --manifest runs/mypets/version_0/manifest.csv

Each category's conversations are written to OUT/<category>.parquet, with contact sheets beside it. Images are embedded
in a predict run of Lightning, by one process or several, which then mine together; the result is the same. Several are
`--accelerator gpu --devices 8`, `--devices 2` on a CPU, or `torchrun --nproc-per-node N -m recipes.conversations`.
"""

import argparse
import hashlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoo.categories import CATEGORIES
from zoo.conversations.manifest import Conversations
from zoo.conversations.mining import REASONS
from zoo.conversations.pipeline import make_conversations
from zoo.conversations.rule import CONVERSATION_SPLITS, GalleryRule
from zoo.conversations.sheets import contact_sheets
from zoo.data.cameras import without_useless_cameras
from zoo.data.holdout import HoldOut
from zoo.data.index import IdentityIndex
from zoo.data.join import Source, read_sources
from zoo.drawing import save_png

ENCODER = "general_mobilenetv3s050.world"
TAUS = (0.2, 0.5, 0.8)  # the paper's
SPLIT = {"val_share": 0.1, "test_share": 0.3, "split_seed": 0}  # of a folder without splits of its own
AT_MOST = ("val=500", "test=500")


def main(args: list[str] | None = None) -> int:
    """Make and write them; returns the exit status."""
    options = parser().parse_args(args)
    try:
        run(options)
    except (ValueError, OSError, MisconfigurationException) as error:
        if os.environ.get("ZOO_TRACEBACK"):
            raise
        sys.stderr.write(f"error: {error}\n")
        return 1
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
    add("--category", choices=sorted(CATEGORIES), help="what the images show; without --root, the world to draw")
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
    add(
        "--split",
        nargs="+",
        choices=CONVERSATION_SPLITS,
        help="splits to use; by default all with images",
    )
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
    add("--accelerator", help="where to embed and compare: cpu, gpu, auto or another of Lightning's; cpu by default")
    add("--devices", help="GPUs, or processes on a CPU, of each machine; by default those of torchrun, or one")
    add("--num_nodes", type=int, help="machines; by default those of torchrun, or one")
    add("--strategy", choices=("auto", "ddp"), default="auto", help="how several processes are run")
    add("--device", help="accelerator and device by PyTorch's name, such as cuda or cuda:1, instead of --accelerator")
    return top


def run(options: argparse.Namespace) -> None:
    """Make, write and report the conversations of each category.

    Raises:
        ValueError: flags that do not fit each other, or images and rules that no conversation can be made of.
        OSError: folders that cannot be read or written.
    """
    refuse_impossible(options)
    rules, at_most, trainer = rules_of(options), limits_of(options.at_most), trainer_of(options)
    console = Console(quiet=not trainer.is_global_zero)
    for category, index in sources(options):
        console.print(f"\n{category}: {escape(str(index.root))}: {index.describe()}", soft_wrap=True, highlight=False)
        made = make_conversations(
            index,
            options.encoder,
            rules,
            category,
            options.split,
            at_most,
            options.per_query,
            options.workers,
            trainer=trainer,
        )
        if not trainer.is_global_zero:
            continue
        made.meta["split"] = split_of(options)
        path = options.out / f"{category}.parquet"
        made.save(path)
        report(made, console)
        console.print(f"{len(made):,} conversations, {made.meta['images']['count']:,} images: {escape(str(path))}")
        for title, picture in contact_sheets(made, options.sheets):
            save_png(picture, options.out / f"{category}_{title}.png")
            console.print(f"contact sheet: {escape(str(options.out / f'{category}_{title}.png'))}", soft_wrap=True)


def trainer_of(options: argparse.Namespace) -> Trainer:
    """Runs the embedding, by default in the processes that torchrun has started, or in this one."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=message)
    local = everywhere = 1
    if torch.distributed.is_torchelastic_launched():
        local, everywhere = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    accelerator, devices = options.accelerator or "cpu", options.devices or str(local)
    if options.device is not None:
        device = torch.device(options.device)
        accelerator = "gpu" if device.type == "cuda" else device.type
        devices = devices if device.index is None else f"{device.index},"
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=options.num_nodes or everywhere // local,
        strategy=options.strategy,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # batches are dealt out such that their number cannot change a vector
    )
    if not trainer.is_global_zero:
        logging.getLogger("zoo").setLevel(logging.ERROR)  # every process reads the images and would log the same
    return trainer


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
    """Refuse flags before anything is read.

    Raises:
        ValueError: a number that is too small, a folder that is not there, or flags of a folder without one.
    """
    for flag, least in (("sheets", 0), ("workers", 0), ("per_query", 1)):
        if getattr(options, flag) < least:
            raise ValueError(f"--{flag} is {getattr(options, flag)}. Give a number from {least} on.")
    if options.root is not None and not options.root.is_dir():
        raise ValueError(f"--root {options.root} is no folder. Give the folder that holds the images.")
    if options.device is not None and (options.accelerator or options.devices):
        raise ValueError("--device names the accelerator and the device. Give it without --accelerator and --devices.")
    shares = [flag for flag in SPLIT if getattr(options, flag) is not None]
    if options.manifest is not None and shares:
        raise ValueError(f"--manifest has a split of its own. Give either it or --{shares[0]}.")
    if options.manifest is not None and not options.manifest.is_file():
        raise ValueError(f"--manifest {options.manifest} is no file. Give the manifest.csv that a run has written.")
    if options.root is None and (options.manifest is not None or shares):
        raise ValueError(f"--{shares[0] if shares else 'manifest'} is about the split of a folder. Give --root.")


def split_of(options: argparse.Namespace) -> dict[str, str | float]:
    """Where the split came from: a manifest by name and hash, or how it was drawn where the folder has none."""
    if options.manifest is not None:
        return {
            "manifest": options.manifest.name,
            "sha256": hashlib.sha256(options.manifest.read_bytes()).hexdigest(),
        }
    return {flag: value if getattr(options, flag) is None else getattr(options, flag) for flag, value in SPLIT.items()}


def limits_of(entries: Sequence[str]) -> dict[str, int]:
    """["500"] or ["train=5000", "test=50"] -> split -> most conversations, by AT_MOST where none is given.

    Splits without a limit are left out.
    """
    limits: dict[str, int] = {}
    for entry in (*AT_MOST, *entries):
        split, _, number = entry.rpartition("=")
        if not number.isdigit():
            raise ValueError(f"--at_most {entry} is no limit. Write a number, or SPLIT=NUMBER, as in test=500.")
        limits |= dict.fromkeys([split] if split else CONVERSATION_SPLITS, int(number))
    return {split: number for split, number in limits.items() if number}


def sources(options: argparse.Namespace) -> Iterator[tuple[str, IdentityIndex]]:
    """Category and images: of the folder, or of the world of each category that has one."""
    if options.root is not None:
        if options.category is None:
            raise ValueError(f"What does {options.root} show? Give --category, one of {', '.join(sorted(CATEGORIES))}.")
        own = HoldOut()
        if options.manifest is None:
            split = split_of(options)
            own = HoldOut(float(split["val_share"]), float(split["test_share"]), options.split_seed or 0)
        source = Source(str(options.root), options.reader)
        yield options.category, without_useless_cameras(read_sources([source], own, options.manifest))
        return
    if options.reader is not None:
        raise ValueError(f"--reader {options.reader} has nothing to read. Give --root.")
    worlds = {name: category.world for name, category in CATEGORIES.items() if category.world is not None}
    if options.category is not None and options.category not in worlds:
        raise ValueError(
            f"There is no world of category {options.category!r}. There is one of {', '.join(worlds)}; or give --root."
        )
    for name in [options.category] if options.category else worlds:
        world = worlds[name]()
        yield name, without_useless_cameras(read_sources([Source(str(world.prepare()), world.READER)]))


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
        values = ", ".join(f"{100 * float(share):g}% up to {value:.3f}" for share, value in row.items())
        console.print(f"similarity of two identities, {split}: {values}", highlight=False, soft_wrap=True)
    if made.meta["unreadable"]:
        names = "\n  ".join(made.meta["unreadable"])
        console.print(f"{len(made.meta['unreadable'])} unreadable images were left out:\n  {escape(names)}")
    copies, disputed = made.meta["copies"], made.meta["disputed"]
    for left_out, what in ((copies, "copies of other images"), (disputed, "files of more than one identity")):
        if left_out:
            console.print(f"{len(left_out)} {what} were left out, such as {escape(left_out[0])}", soft_wrap=True)
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


if __name__ == "__main__":
    raise SystemExit(main())
