"""Labeled Pedestrian in the Wild.

    pep_256x128/
        scen1/view1/12/0001.jpg     scene, view (the camera), identity; also below data_slim/
        scen2/...  scen3/...

Song et al., Region-based Quality Estimation Network for Large-scale Person Re-identification, AAAI 2018. Identities
are numbered anew in every scene and shared by its views. Scenes 2 and 3 are trained on; of scene 1, view 2 is the query
and the others are the gallery.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zoo.data.files import Files, subfolders
from zoo.data.readers.base import Count, Published, Reader, Row, register

_SCENE, _VIEW, _IMAGE = re.compile(r"scen([123])"), re.compile(r"view(\d+)"), re.compile(r"\d+\.\w+")
_TEST_SCENE, _QUERY_VIEW = 1, 2
_SLIM = "data_slim"


@register
@dataclass(frozen=True)
class LPW(Reader):
    """Reads LPW; a camera's number is 10 * scene + view."""

    name = "lpw"
    layout = "scen{1,2,3}/view<n>/<identity>/<number>.jpg, perhaps below data_slim/"
    published = Published(
        "LPW",
        {"train+val": Count(418_739, 1_975), "query": Count(63_118, None), "gallery": Count(108_690, None)},
        origins=("lpw",),
    )

    @classmethod
    def is_dataset(cls, folder: Path) -> bool:
        return bool(_views(folder))

    def rows(self, files: Files) -> Iterator[Row]:
        for scene, view, where in _views(files.place):
            split = "train" if scene != _TEST_SCENE else "query" if view == _QUERY_VIEW else "gallery"
            for person in subfolders(where):
                for path, name in files.images(person):
                    if _IMAGE.fullmatch(name):
                        yield Row(path, f"scen{scene}/{person.name}", split, 10 * scene + view)
                    else:
                        files.skip("images whose name is not a number", path)


def _views(folder: Path) -> list[tuple[int, int, Path]]:
    """(scene, view, folder) of every view of a dataset."""
    found = []
    for scene in subfolders(folder / _SLIM if (folder / _SLIM).is_dir() else folder):
        if matched := _SCENE.fullmatch(scene.name):
            views = [(_VIEW.fullmatch(view.name), view) for view in subfolders(scene)]
            found += [(int(matched[1]), int(match[1]), view) for match, view in views if match]
    return found
