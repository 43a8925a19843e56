"""The table of open-metric-learning.

    root/
        df.csv      label, path, split, is_query, is_gallery; perhaps category, sequence, x_1, x_2, y_1, y_2
        ...         the images, at `path` relative to the table's folder

split is train or validation. The roles are empty in training; an image of validation is a query, in the gallery, or
both. Every label among the queries must be in the gallery. x_1, x_2, y_1, y_2 are left, right, top and bottom in
pixels, empty where an image has no box.

sequence: images of one sequence, such as neighbouring frames of a film, share it. open-metric-learning leaves out of a
query's gallery whatever is of its sequence. Here a sequence becomes a camera: those images of the query's own label and
sequence are left out, which is the same where no sequence shows two labels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from zoo.data.index import NO_BOX
from zoo.data.readers.base import Box, Row, register
from zoo.data.readers.table import TableReader, rows_of

_TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": False}
#: (is_query, is_gallery) -> split
_ROLES = {(True, True): "test", (True, False): "query", (False, True): "gallery"}


@register
@dataclass(frozen=True)
class OpenMetricLearning(TableReader):
    """Reads a table of open-metric-learning; its validation becomes the test.

    Args:
        table: the CSV file, relative to root, where there are several.
    """

    name = "oml_csv"
    layout = "a CSV file with the columns label, path, split, is_query, is_gallery, and the images that it names"
    columns = ("label", "path", "split", "is_query", "is_gallery")
    unusable = "rows without label, path, a role, or a box that is one"

    def entries(self, table: Path) -> Iterator[dict[str, str]]:
        """
        Raises:
            ValueError: queries whose label is not in the gallery.
        """
        asked, stored = set(), set()
        for entry in rows_of(table):
            split = _split(entry)
            asked |= {entry["label"]} if split in ("test", "query") else set()
            stored |= {entry["label"]} if split in ("test", "gallery") else set()
            yield entry
        if asked - stored:
            raise ValueError(
                f"{len(asked - stored)} labels of {table} have queries and nothing in the gallery, such as "
                f"{sorted(asked - stored)[0]!r}. Add gallery images of them, or take their queries out."
            )

    def parse(self, entry: Mapping[str, str]) -> Row | None:
        path, label, split, box = entry["path"], entry["label"], _split(entry), _box(entry)
        if not label or not path or split is None or box is None:
            return None
        return Row(path, label, split, entry.get("sequence", ""), entry.get("category", ""), box)


def _split(entry: Mapping[str, str]) -> str | None:
    if entry["split"] == "train":
        return "train"
    query, gallery = (_TRUTH.get(entry[role].strip().lower()) for role in ("is_query", "is_gallery"))
    if entry["split"] != "validation" or query is None or gallery is None:
        return None
    return _ROLES.get((query, gallery))


def _box(entry: Mapping[str, str]) -> Box | None:
    """x, y, w, h; -1 where there is none; None where it is not a box."""
    corners = [entry.get(name, "").strip() for name in ("x_1", "y_1", "x_2", "y_2")]
    if not any(corners):
        return NO_BOX
    try:
        left, top, right, bottom = map(float, corners)
    except ValueError:
        return None
    return (left, top, right - left, bottom - top) if 0 <= left < right and 0 <= top < bottom else None
