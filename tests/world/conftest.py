"""What the tests of the worlds share: small worlds of every category, drawn once, and masks with a margin."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zoo.world import Faces, Objects, Persons, Pets, Scenes, World
from zoo.world.rendered import RenderedDataset

FACES = Faces(families=5, members=2, views=2, size=40, seed=3)
OBJECTS = Objects(families=14, members=2, views=2, size=40, seed=3)
PERSONS = Persons(families=6, members=2, views=10, size=32, seed=3)
PETS = Pets(families=5, members=2, views=2, size=40, seed=3)
SCENES = Scenes(scenes=24, size=48, families=12, members=2, seed=3)
WORLDS: dict[str, World] = {world.NAME: world for world in (FACES, OBJECTS, PERSONS, PETS)}
#: environment of another process that imports what this one imports.
SEARCH = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RenderedDataset], Path]:
    """Renders a dataset in this process, or returns its folder if it is there already; not to be changed."""
    cache = tmp_path_factory.mktemp("worlds")
    return lambda dataset: dataset.prepare(cache, workers=1)


def grown(mask: np.ndarray, steps: int = 4) -> np.ndarray:
    """A mask with a margin of a few pixels: lenses blur, and edges of a silhouette are mixed."""
    near = mask.copy()
    for axis, by in ((0, 1), (1, 1)) * steps:
        near |= np.roll(near, by, axis) | np.roll(near, -by, axis)
    return near
