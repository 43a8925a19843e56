"""How conversations are made: images are embedded, copies left out, galleries mined, and all of it written down."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from zoo.cards import card, load
from zoo.categories import find_category
from zoo.contracts import IdentityEncoder
from zoo.conversations.embedding import SPLITS, Embedded, embed, sides
from zoo.conversations.galleries import Galleries, galleries
from zoo.conversations.manifest import SCHEMA, Conversations, ImageRef, hashes, signature
from zoo.conversations.rule import GalleryRule, quantiles
from zoo.data.index import IdentityIndex
from zoo.distributed import from_all_ranks, rank

MINING = 2
"""Raised whenever the same images, encoder and rules make other conversations than before."""

SHARES = (0.1, 0.5, 0.9, 0.99)
"""Of the pairs of two identities; the similarities that they do not exceed are noted in every manifest."""


def build(
    index: IdentityIndex,
    encoder: str | Path,
    rules: Sequence[GalleryRule],
    category: str,
    splits: Sequence[str] | None = None,
    at_most: int | Mapping[str, int] | None = None,
    per_query: int = 1,
    workers: int = 2,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Conversations:
    """Conversations over the images of an index; the work is shared where torch.distributed runs.

    Of several images of an identity that are the same byte for byte one is used; images that are, and show two
    identities, are left out.

    Args:
        index: the images; `without_useless_cameras` beforehand keeps queries whose positives are all of one camera.
        encoder: name on the shelf, folder or hub id of the general encoder that says what looks alike.
        rules: what a gallery is, a rule for each level of difficulty.
        category: an entry of `zoo.categories`, the expert to be asked.
        splits: of train, val and test; None for those that have images.
        at_most: most conversations of a level in each split, or in the splits named; None for all.
        per_query: conversations for each query.
        workers: processes that decode, on each rank.
        device: where to embed and mine.
        progress: show bars, on rank 0.

    Raises:
        ValueError: unknown category or split, a split without images, or two rules of one level.
        CardError: no such encoder, or one whose files were changed.
    """
    find_category(category)
    levels = [rule.level for rule in rules]
    if not levels or len(set(levels)) < len(levels):
        raise ValueError(
            f"The levels are {', '.join(levels) or 'none'}. Give one rule for each level, and one at least."
        )
    there = [split for split in SPLITS if len(sides(index, split)[0])]
    unknown = [split for split in splits or () if split not in there]
    if unknown:
        raise ValueError(f"{index.root} has no images in split {unknown[0]!r}. It has {', '.join(there)}.")
    if isinstance(at_most, Mapping) and set(at_most) - set(SPLITS):
        raise ValueError(f"at_most names {', '.join(sorted(set(at_most) - set(SPLITS)))}. Known: {', '.join(SPLITS)}.")
    splits = list(dict.fromkeys(splits or there))
    limits = at_most if isinstance(at_most, Mapping) else dict.fromkeys(splits, at_most)
    rows = np.unique(np.concatenate([side for split in splits for side in sides(index, split)]))
    model = load(encoder, device=device)
    if not isinstance(model, IdentityEncoder):
        raise ValueError(f"{encoder} is a {type(model).__name__}, no encoder of images. Name one that embeds images.")
    paths = np.unique(index.paths[rows]).tolist()
    bar = progress and rank() == 0
    sha256 = from_all_ranks(hashes(index.root, paths, progress=bar) if rank() == 0 else {})[0]
    embedded, copies, disputed = _distinct(index, embed(index, model, rows, workers, progress), sha256)
    asked = [rule.tau_quantile for rule in rules if rule.tau_quantile is not None]
    shares = sorted({*SHARES, *asked})
    similar = {split: dict(zip(shares, quantiles(index, embedded, split, shares), strict=True)) for split in splits}
    made: dict[tuple[str, str], Galleries] = {}
    for split in splits:
        for rule in rules:
            tau = similar[split].get(rule.tau_quantile) if rule.tau_quantile is not None else None
            made[split, rule.level] = galleries(
                index, embedded, rule, split, tau, limits.get(split), per_query, progress
            )
    meta = {
        "encoder": signature(card(encoder)),
        "category": category,
        "rules": [asdict(rule) for rule in rules],
        "tau": {split: {level: made[split, level].tau for level in levels} for split in splits},
        "skipped": {split: {level: made[split, level].skipped for level in levels} for split in splits},
        "quantiles": {split: {f"{share:g}": value for share, value in row.items()} for split, row in similar.items()},
        "unreadable": list(embedded.unreadable),
        "copies": copies,
        "disputed": disputed,
        "identities": {split: len(np.unique(index.identities[embedded.sides(index, split)[0]])) for split in splits},
    }
    return _manifest(index, made, meta, sha256)


def _distinct(
    index: IdentityIndex, embedded: Embedded, sha256: Mapping[str, str | None]
) -> tuple[Embedded, list[str], list[str]]:
    """Without what is there twice, byte for byte: bursts, exports and backups of photos hold many copies.

    Found as the positive of its own query, a copy would ask nothing; under two identities, it has no right answer.

    Returns:
        the others, the first of several copies among them; "path: of path" of each copy; and "path: identity" of each
        image of two identities.
    """
    groups: dict[tuple, list[int]] = {}
    for row in embedded.rows.tolist():
        image = _described(index, row)
        groups.setdefault((sha256[image.path], image.box), []).append(row)
    left: set[int] = set()
    copies, disputed = [], []
    for first, *others in groups.values():
        if len({int(index.identities[row]) for row in (first, *others)}) > 1:
            left.update((first, *others))
            disputed += [f"{index.paths[row]}: {index.names[index.identities[row]]}" for row in (first, *others)]
        else:
            left.update(others)
            copies += [f"{index.paths[row]}: of {index.paths[first]}" for row in others]
    kept = ~np.isin(embedded.rows, list(left))
    vectors = embedded.vectors[torch.from_numpy(kept).to(embedded.vectors.device)]
    return Embedded(embedded.rows[kept], vectors, embedded.unreadable), copies, disputed


def _manifest(
    index: IdentityIndex,
    made: Mapping[tuple[str, str], Galleries],
    meta: dict[str, Any],
    sha256: Mapping[str, str | None],
) -> Conversations:
    """Rows of an index as a table, with a hash for each image file.

    Args:
        index: the images.
        made: split and level -> galleries.
        meta: what is known already.
        sha256: path -> of the file.

    Raises:
        ValueError: an image that could be embedded is gone.
    """
    rows = np.unique(np.concatenate([np.append(g.gallery[g.gallery >= 0], g.query) for g in made.values()]))
    paths = np.unique(index.paths[rows]).tolist()
    gone = [path for path in paths if sha256[path] is None]
    if gone:
        raise ValueError(
            f"{len(gone)} images of {index.root} are gone, such as {gone[0]}. Restore them and start again."
        )
    images = {row: _described(index, row) for row in rows.tolist()}
    table: dict[str, list] = {name: [] for name in SCHEMA.names}
    for (split, level), part in made.items():
        for query, gallery, answer, similarity in zip(
            part.query.tolist(), part.gallery.tolist(), part.answer.tolist(), part.similarity, strict=True
        ):
            asked, shown = images[query], [images[row] for row in gallery if row >= 0]
            entry = (split, meta["category"], level, part.tau, answer, *asked, sha256[asked.path])
            lists = (*map(list, zip(*shown, strict=True)), [sha256[image.path] for image in shown])
            for column, value in zip(table.values(), (*entry, *lists, similarity[: len(shown)]), strict=True):
                column.append(value)
    lines = "\n".join(f"{path} {sha256[path]}" for path in paths)
    meta["images"] = {"count": len(paths), "sha256": hashlib.sha256(lines.encode()).hexdigest()}
    return Conversations(index.root, pa.table(table, SCHEMA), meta)


def _described(index: IdentityIndex, row: int) -> ImageRef:
    x, y, w, h = (-1.0,) * 4 if index.boxes is None else index.boxes[row].tolist()
    box = (x, y, w, h) if w > 0 else None
    return ImageRef(str(index.paths[row]), index.names[int(index.identities[row])], box)
