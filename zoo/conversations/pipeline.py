"""How conversations are made: images are embedded, copies left out, galleries mined, and all of it written down."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from lightning import Trainer

from zoo.cards import card, load
from zoo.categories import find_category
from zoo.contracts import IdentityEncoder
from zoo.conversations.embedding import ImageEmbeddings, embed, query_and_gallery_rows
from zoo.conversations.galleries import Galleries, make_galleries
from zoo.conversations.manifest import SCHEMA, Conversations, ImageRef, ManifestMeta, hashes, signature
from zoo.conversations.rule import CONVERSATION_SPLITS, GalleryRule
from zoo.conversations.similarity import quantiles
from zoo.data.index import IdentityIndex
from zoo.distributed import from_all_ranks, rank, world_size

MINING_VERSION = 2
"""Raised whenever the same images, encoder and rules make other conversations than before."""

NOTED_SHARES = (0.1, 0.5, 0.9, 0.99)
"""Of the pairs of two identities; the similarities that they do not exceed are noted in every manifest."""


def make_conversations(
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
    trainer: Trainer | None = None,
) -> Conversations:
    """Conversations over the images of an index, made by all processes and the same on each of them.

    Of several images of an identity that are the same byte for byte one is used; images that are, and show two
    identities, are left out.

    Args:
        index: the images; `without_useless_cameras` beforehand keeps queries whose positives are all of one camera.
        encoder: name on the shelf, folder or hub id of the general encoder whose similarity tau refers to.
        rules: what a gallery is, a rule for each level of difficulty.
        category: an entry of `zoo.categories`, the expert to be asked.
        splits: of train, val and test; None for those that have images.
        at_most: most conversations of a level in each split, or in the splits named; None for all.
        per_query: conversations for each query.
        workers: processes that decode, on each rank.
        device: where to embed and mine, without a trainer.
        progress: show bars, on rank 0.
        trainer: embeds in a predict run, whose devices and processes then mine; None where a run, or none, is going on.

    Raises:
        ValueError: unknown category or split, a split without images, or two rules of one level.
        CardError: no such encoder, or one whose files were changed.
    """
    find_category(category)
    _check_levels(rules)
    splits = _checked_splits(index, splits)
    limits = _checked_limits(at_most, splits)
    rows = np.unique(np.concatenate([side for split in splits for side in query_and_gallery_rows(index, split)]))
    embeddings = embed(index, _loaded(encoder, device), rows, workers, progress, trainer=trainer)
    sha256 = _hashes(index, rows, progress)
    images = _without_copies(index, embeddings, sha256)
    mined = _mine(index, images.embeddings, rules, splits, limits, per_query, progress)
    meta = _meta(index, encoder, category, rules, images, mined)
    return _manifest(index, mined.galleries, meta, sha256)


# ---------------------------------------------------------------------- what is asked for


def _check_levels(rules: Sequence[GalleryRule]) -> None:
    levels = [rule.level for rule in rules]
    if not levels or len(set(levels)) < len(levels):
        raise ValueError(
            f"The levels are {', '.join(levels) or 'none'}. Give one rule for each level, and one at least."
        )


def _checked_splits(index: IdentityIndex, splits: Sequence[str] | None) -> list[str]:
    """Those asked for, once each; all that have images where none is named."""
    filled = [split for split in CONVERSATION_SPLITS if len(query_and_gallery_rows(index, split)[0])]
    unknown = [split for split in splits or () if split not in filled]
    if unknown:
        raise ValueError(f"{index.root} has no images in split {unknown[0]!r}. It has {', '.join(filled)}.")
    return list(dict.fromkeys(splits or filled))


def _checked_limits(at_most: int | Mapping[str, int] | None, splits: Sequence[str]) -> dict[str, int]:
    """Split -> most conversations of a level; splits without a limit are left out."""
    if not isinstance(at_most, Mapping):
        return {} if at_most is None else dict.fromkeys(splits, at_most)
    unknown = sorted(set(at_most) - set(CONVERSATION_SPLITS))
    if unknown:
        raise ValueError(f"at_most names {', '.join(unknown)}. Known: {', '.join(CONVERSATION_SPLITS)}.")
    return dict(at_most)


def _loaded(encoder: str | Path, device: str | torch.device) -> IdentityEncoder:
    model = load(encoder, device=device)
    if not isinstance(model, IdentityEncoder):
        raise ValueError(f"{encoder} is a {type(model).__name__}, no encoder of images. Name one that embeds images.")
    return model


# ---------------------------------------------------------------------- the images


def _hashes(index: IdentityIndex, rows: np.ndarray, progress: bool) -> dict[str, str | None]:
    """Path -> sha256 of each image file, None where it cannot be read; every rank reads its share."""
    own = np.unique(index.paths[rows]).tolist()[rank() :: world_size()]
    parts = from_all_ranks(hashes(index.root, own, progress=progress and rank() == 0))
    return {path: value for part in parts for path, value in part.items()}


class _DistinctImages(NamedTuple):
    """Images without copies of each other.

    Args:
        embeddings: theirs, the first of several copies among them.
        copies: "path: of path" of each copy.
        disputed: "path: identity" of each image of two identities.
    """

    embeddings: ImageEmbeddings
    copies: list[str]
    disputed: list[str]


def _without_copies(
    index: IdentityIndex, embeddings: ImageEmbeddings, sha256: Mapping[str, str | None]
) -> _DistinctImages:
    """Every image once: bursts, exports and backups of photos hold many copies, the same byte for byte.

    As the positive of its own query a copy would ask nothing; under two identities it has no right answer.
    """
    groups: dict[tuple, list[int]] = {}
    for row in embeddings.rows.tolist():
        image = _image_ref(index, row)
        groups.setdefault((sha256[image.path], image.box), []).append(row)
    left_out: set[int] = set()
    copies, disputed = [], []
    for first, *others in groups.values():
        if len({int(index.identities[row]) for row in (first, *others)}) > 1:
            left_out.update((first, *others))
            disputed += [f"{index.paths[row]}: {index.names[index.identities[row]]}" for row in (first, *others)]
        else:
            left_out.update(others)
            copies += [f"{index.paths[row]}: of {index.paths[first]}" for row in others]
    kept = embeddings.select(~np.isin(embeddings.rows, list(left_out)))
    return _DistinctImages(kept, copies, disputed)


# ---------------------------------------------------------------------- the galleries


class _Mined(NamedTuple):
    """Galleries of each split and level, and what similarities two identities of a split have.

    Args:
        galleries: (split, level) -> its galleries.
        quantiles: split -> share of the pairs of two identities -> similarity that they do not exceed.
    """

    galleries: dict[tuple[str, str], Galleries]
    quantiles: dict[str, dict[float, float]]


def _mine(
    index: IdentityIndex,
    embeddings: ImageEmbeddings,
    rules: Sequence[GalleryRule],
    splits: Sequence[str],
    limits: Mapping[str, int],
    per_query: int,
    progress: bool,
) -> _Mined:
    shares = sorted({*NOTED_SHARES, *(rule.tau_quantile for rule in rules if rule.tau_quantile is not None)})
    similar = {split: dict(zip(shares, quantiles(index, embeddings, split, shares), strict=True)) for split in splits}
    made = {
        (split, rule.level): make_galleries(
            index, embeddings, rule, split, similar[split], limits.get(split), per_query, progress
        )
        for split in splits
        for rule in rules
    }
    return _Mined(made, similar)


# ---------------------------------------------------------------------- the manifest


def _meta(
    index: IdentityIndex,
    encoder: str | Path,
    category: str,
    rules: Sequence[GalleryRule],
    images: _DistinctImages,
    mined: _Mined,
) -> ManifestMeta:
    """What a manifest records beside its table, less the `images` that it names."""
    tau: dict[str, dict[str, float]] = {}
    skipped: dict[str, dict[str, dict[str, int]]] = {}
    for (split, level), galleries in mined.galleries.items():
        tau.setdefault(split, {})[level] = galleries.tau
        skipped.setdefault(split, {})[level] = galleries.skipped
    embeddings = images.embeddings
    asked = {split: embeddings.query_and_gallery_rows(index, split)[0] for split in tau}
    return {
        "encoder": signature(card(encoder)),
        "category": category,
        "rules": [asdict(rule) for rule in rules],
        "tau": tau,
        "skipped": skipped,
        "quantiles": {
            split: {f"{share:g}": value for share, value in row.items()} for split, row in mined.quantiles.items()
        },
        "unreadable": list(embeddings.unreadable),
        "copies": images.copies,
        "disputed": images.disputed,
        "identities": {split: len(np.unique(index.identities[rows])) for split, rows in asked.items()},
    }


def _manifest(
    index: IdentityIndex,
    made: Mapping[tuple[str, str], Galleries],
    meta: ManifestMeta,
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
    images = {row: _image_ref(index, row) for row in rows.tolist()}
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


def _image_ref(index: IdentityIndex, row: int) -> ImageRef:
    x, y, w, h = (-1.0,) * 4 if index.boxes is None else index.boxes[row].tolist()
    box = (x, y, w, h) if w > 0 else None
    return ImageRef(str(index.paths[row]), index.names[int(index.identities[row])], box)
