"""Several datasets as one: their indices are joined, and training on what another one tests on is refused."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.attributes import with_attributes
from zoo.data.holdout import HoldOut
from zoo.data.index import INDEX_SPLITS, TESTED, IdentityIndex, Pairs
from zoo.data.readers import choose_reader, read_with
from zoo.distributed import rank

log = logging.getLogger(__name__)

_HELD_OUT = ("val", *TESTED, "closed")


@dataclass(frozen=True)
class Source:
    """A dataset to read, perhaps one of several.

    Args:
        root: its folder, or the parent of it.
        reader: its layout, the name of a reader in `zoo.data.readers`; null chooses the one that fits.
        name: put before its identities, so that they stay apart from those of other sources; null for the reader's.
        options: options of the reader.
        splits: keep these of its splits only; null for all.
    """

    root: str
    reader: str | None = None
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    splits: list[str] | None = None


def read_sources(
    sources: Sequence[Source],
    hold_out: HoldOut = HoldOut(),  # noqa: B008  (frozen)
    manifest: str | Path | None = None,
) -> IdentityIndex:
    """Read one dataset as it is, or several joined.

    Args:
        sources: at least one.
        hold_out: identities to validate and test on, for every reader whose dataset does not publish them.
        manifest: reuse the rows and splits of an earlier run over the same sources, instead of reading them.

    Raises:
        ValueError: the reader's errors, a split that a source does not have, two sources of one name, or a leak.
        FileNotFoundError: no such folder.
    """
    if not sources:
        raise ValueError("No source to read. Give at least one, with its root.")
    if manifest is not None:
        return IdentityIndex.load(Path(manifest), common_root([_root(source) for source in sources]))
    readers = [source.reader or choose_reader(_root(source)) for source in sources]
    indices = [_read(source, reader, hold_out) for source, reader in zip(sources, readers, strict=True)]
    if len(sources) == 1:
        return indices[0]
    return join(dict(zip(_names(sources, readers), indices, strict=True)))


def join(sources: Mapping[str, IdentityIndex]) -> IdentityIndex:
    """One index of several: rows one source after another, under the parent folder that they share.

    Identities are named `<source>/<identity>`; cameras are renumbered so that no two sources share one; attributes
    that a source does not have are "". The attribute `source` names each row's source, except in a source that has an
    attribute of this name itself. Folds of pairs keep their numbers.

    Raises:
        ValueError: no source, a name with a slash, sources on different drives, or training on what another source
            tests on.
    """
    if not sources:
        raise ValueError("No source to join. Give at least one index.")
    slashed = [name for name in sources if "/" in name or not name]
    if slashed:
        raise ValueError(f"A source cannot be named {slashed[0]!r}. Give it a name without a slash.")
    _refuse_leaks(sources)
    indices = list(sources.values())
    root = common_root([index.root for index in indices])
    prefixes = [_prefix(root, index.root) for index in indices]
    starts = np.cumsum([0, *(len(index) for index in indices)])
    return IdentityIndex.build(
        root,
        [prefix + path for prefix, index in zip(prefixes, indices, strict=True) for path in index.paths.tolist()],
        [f"{name}/{index.names[i]}" for name, index in sources.items() for i in index.identities],
        np.concatenate([index.splits for index in indices]).tolist(),
        np.concatenate([index.categories for index in indices]).tolist(),
        np.concatenate(list(_apart([index.cameras for index in indices]))).tolist(),
        _boxes(indices),
        _attributes(sources),
        _pairs(indices, starts),
        tuple(dict.fromkeys(origin for index in indices for origin in index.origins)),
    )


def common_root(roots: Sequence[Path]) -> Path:
    """The innermost folder that holds all of these folders; a single one as it is.

    Raises:
        ValueError: folders on different drives.
    """
    if len(set(roots)) == 1:
        return roots[0]
    try:
        return Path(os.path.commonpath([os.path.abspath(root) for root in roots]))
    except ValueError as error:
        raise ValueError(
            f"{', '.join(map(str, roots))} have no folder in common. Keep the sources on one drive, or link them there."
        ) from error


# ---------------------------------------------------------------------- reading


def _root(source: Source) -> Path:
    return Path(source.root).expanduser()


def _read(source: Source, reader: str, hold_out: HoldOut) -> IdentityIndex:
    index = with_attributes(read_with(reader, _root(source), hold_out, source.options))
    if source.splits is None:
        return index
    there = [kind for kind in INDEX_SPLITS if len(index.rows(kind))]
    absent = sorted(set(source.splits) - set(there))
    if absent or not source.splits:
        raise ValueError(
            f"{source.root} has no split {absent[0] if absent else source.splits!r}. It has {', '.join(there)}."
        )
    return index.select(index.rows(*source.splits))


def _names(sources: Sequence[Source], readers: Sequence[str]) -> list[str]:
    """The given names, and for the others the reader's, numbered where it is taken."""
    given = [source.name for source in sources if source.name is not None]
    twice = {name for name in given if given.count(name) > 1}
    if twice:
        raise ValueError(f"Two sources are named {sorted(twice)[0]!r}. Give every source a name of its own.")
    names: list[str] = []
    for source, reader in zip(sources, readers, strict=True):
        free = (n for n in _numbered(reader) if n not in given and n not in names)
        names.append(source.name if source.name is not None else next(free))
    return names


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


# ---------------------------------------------------------------------- columns


def _prefix(root: Path, folder: Path) -> str:
    relative = Path(os.path.relpath(os.path.abspath(folder), os.path.abspath(root))).as_posix()
    return "" if relative == "." else f"{relative}/"


def _apart(cameras: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Cameras of every source after those of the ones before it; -1 stays."""
    free = 0
    for column in cameras:
        yield np.where(column < 0, -1, column + free)
        free += int(column.max(initial=-1)) + 1


def _boxes(indices: Sequence[IdentityIndex]) -> np.ndarray | None:
    if all(index.boxes is None for index in indices):
        return None
    none = [np.full((len(index), 4), -1.0, dtype=np.float32) for index in indices]
    return np.concatenate([e if i.boxes is None else i.boxes for i, e in zip(indices, none, strict=True)])


def _attributes(sources: Mapping[str, IdentityIndex]) -> dict[str, np.ndarray]:
    columns = [{"source": np.full(len(index), name)} | index.attributes for name, index in sources.items()]
    unknown = [np.full(len(index), "") for index in sources.values()]
    return {
        name: np.concatenate([own.get(name, empty) for own, empty in zip(columns, unknown, strict=True)])
        for name in dict.fromkeys(name for own in columns for name in own)
    }


def _pairs(indices: Sequence[IdentityIndex], starts: np.ndarray) -> Pairs | None:
    shifted = [
        (index.pairs.first + start, index.pairs.second + start, index.pairs.same, index.pairs.fold)
        for index, start in zip(indices, starts[:-1], strict=True)
        if index.pairs is not None
    ]
    return Pairs(*(np.concatenate(column) for column in zip(*shifted, strict=True))) if shifted else None


# ---------------------------------------------------------------------- leaks


def _refuse_leaks(sources: Mapping[str, IdentityIndex]) -> None:
    """
    Raises:
        ValueError: one source trains on a collection, an identity or a file that another one validates or tests on.
    """
    for (name, training), (other, tested) in permutations(sources.items(), 2):
        if not len(training.rows("train")):
            continue
        shared = [origin for origin in training.origins if origin in tested.origins]
        if shared and training.origins == tested.origins:
            _refuse_shared_identities(name, training, other, tested)
        elif shared and len(tested.rows("val", *TESTED)):
            what = "tested" if len(tested.rows(*TESTED)) else "validated"
            raise ValueError(
                f"{name} would be trained on and {other} {what} on, and both are made from {shared[0]}: the same "
                f"people or things would be in training and held out. Keep only the split train of {other} (its "
                f"splits; val_share 0 trains on all of it), or leave {name} out of the training."
            )
        if (
            shared
            and list(sources).index(name) < list(sources).index(other)
            and len(tested.rows("train"))
            and not rank()
        ):
            log.warning(
                "%s and %s are both made from %s: one identity may be trained on under two names.",
                name,
                other,
                shared[0],
            )
        _refuse_shared_files(name, training, other, tested)


def _refuse_shared_identities(name: str, training: IdentityIndex, other: str, tested: IdentityIndex) -> None:
    """
    Raises:
        ValueError: two readings of one dataset, which name their identities alike, train and test on the same.
    """
    trained = {training.names[i] for i in np.unique(training.identities[training.rows("train")])}
    both = sorted(trained & {tested.names[i] for i in np.unique(tested.identities[tested.rows("val", *TESTED)])})
    if both:
        raise ValueError(
            f"{name} and {other} are the same dataset, and {len(both)} identities that {name} trains on are tested on "
            f"in {other}, such as {both[0]!r}. Read both with the same split, or keep other splits of one of them."
        )


def _refuse_shared_files(name: str, training: IdentityIndex, other: str, tested: IdentityIndex) -> None:
    held_out = tested.rows(*_HELD_OUT)
    if not len(held_out):
        return
    trained = set(_resolved(training, training.rows("train")))
    both = [path for path in _resolved(tested, held_out) if path in trained]
    if both:
        raise ValueError(
            f"{len(both)} files that {name} trains on are held out in {other}, such as {both[0]}. "
            "Leave them out of one of the two, for example by its splits."
        )


def _resolved(index: IdentityIndex, rows: np.ndarray) -> Iterator[str]:
    """Paths of images without links on the way; every folder is listed once to learn which files are links."""
    folders: dict[str, tuple[str, frozenset[str]]] = {}
    for path in index.paths[rows].tolist():
        folder, name = os.path.split(os.path.join(index.root, path))
        if folder not in folders:
            folders[folder] = (os.path.realpath(folder), _links(folder))
        real, links = folders[folder]
        yield os.path.realpath(os.path.join(folder, name)) if name in links else os.path.join(real, name)


def _links(folder: str) -> frozenset[str]:
    if not os.path.isdir(folder):
        return frozenset()
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries if entry.is_symlink())
