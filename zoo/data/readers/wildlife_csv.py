"""The table of wildlife-datasets.

    root/
        metadata.csv    any name: image_id, identity, path; perhaps bbox "[x, y, w, h]", species, video, ...
        ...             the images, at `path` relative to the table's folder

Images of the identity `unknown` are left out. One image may have several rows, each with the box of another animal.
The species is the category. The table has no split that keeps identities apart: they are split by seed.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from zoo.data.holdout import HoldOut
from zoo.data.index import INDEX_SPLITS, NO_BOX
from zoo.data.readers.base import Box, Row, register
from zoo.data.readers.table import TableReader, rows_of
from zoo.distributed import rank

log = logging.getLogger(__name__)

_UNKNOWN = ("unknown", "", "nan")


@register
@dataclass(frozen=True)
class WildlifeDatasets(TableReader):
    """Reads a table of wildlife-datasets.

    Args:
        table: the CSV file, relative to root, where there are several.
        split: column with train, val, test, query or gallery, to be used instead of a split by seed.
        videos_are_cameras: an image of the query's own video is junk. Only where most animals are in several videos.
    """

    name = "wildlife_csv"
    layout = "a CSV file with the columns image_id, identity, path, and the images that it names"
    columns = ("image_id", "identity", "path")
    unusable = "rows without a path, a known split, or a box that is one"

    split: str | None = None
    videos_are_cameras: bool = False

    def needed(self) -> tuple[str, ...]:
        return (*self.columns, *([self.split] if self.split else []), *(["video"] if self.videos_are_cameras else []))

    def entries(self, table: Path) -> Iterator[dict[str, str]]:
        """Those of known identity."""
        unknown = 0
        for entry in rows_of(table):
            if entry["identity"].strip().lower() in _UNKNOWN:
                unknown += 1
            else:
                yield entry
        if unknown and rank() == 0:
            log.info("%s: left out %d images of unknown identity", table, unknown)

    def parse(self, entry: Mapping[str, str]) -> Row | None:
        path, split, box = entry["path"], entry[self.split] if self.split else "", _box(entry.get("bbox", ""))
        if not path or box is None or (self.split and split not in INDEX_SPLITS):
            return None
        video = entry.get("video", "") if self.videos_are_cameras else ""
        return Row(path, entry["identity"], split, video, entry.get("species", ""), box)

    def assign_splits(self, rows: list[Row], hold_out: HoldOut) -> list[Row]:
        """A column of splits is used as it is."""
        return rows if self.split else super().assign_splits(rows, hold_out)


def _box(text: str) -> Box | None:
    """x, y, w, h of "[x, y, w, h]"; -1 where there is none; None where it is not a box."""
    if text.strip().lower() in ("", "nan", "none"):
        return NO_BOX
    try:
        x, y, w, h = (float(value) for value in json.loads(text))
    except (ValueError, TypeError):
        return None
    return (x, y, w, h) if w > 0 and h > 0 else None
