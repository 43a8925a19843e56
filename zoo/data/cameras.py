"""Dropping cameras that would leave a split without positives, with a warning."""

import logging
from dataclasses import replace

import numpy as np

from zoo.data.index import IdentityIndex
from zoo.distributed import rank

log = logging.getLogger(__name__)


def without_useless_cameras(index: IdentityIndex) -> IdentityIndex:
    """The index without cameras in those splits where they make every positive junk, such as a single camera for all.

    An image of the query's identity and camera is junk: it counts neither as right nor as wrong. Every source of a
    joined index (its attribute `source`) is looked at by itself, val apart from the test. Training images lose their
    cameras with the test images of their source.
    """
    if (index.cameras < 0).all():
        return index
    sources = index.attributes.get("source", np.full(len(index), ""))
    cameras = index.cameras.copy()
    for source in np.unique(sources):
        here = sources == source
        where = f"source {source} of {index.root}" if source else str(index.root)
        for split in ("val", "test"):
            query_rows, gallery_rows = index.sides(split)
            query_rows = query_rows[here[query_rows]]
            has_positive = index.positives(query_rows, gallery_rows, by_camera=False) > 0
            loses_all = has_positive & (index.positives(query_rows, gallery_rows) == 0)
            lost, total = int(loses_all.sum()), int(has_positive.sum())
            if lost and lost == total:
                cameras[here & ((index.splits == "val") == (split == "val"))] = -1
            _warn(where, split, lost, total)
    return replace(index, cameras=cameras)


def _warn(where: str, split: str, lost: int, total: int) -> None:
    if rank() == 0 and 2 * lost > total:
        log.warning(
            "%s, %s: %d of %d queries have images of their identity from their own camera only. %s",
            where,
            split,
            lost,
            total,
            "By the rule that such images do not count, all positives would be junk: the cameras are ignored."
            if lost == total
            else "Such images do not count, so that these queries are left out of the scores.",
        )
