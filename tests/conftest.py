"""What the tests share: a tiny folder of identities, and a home of their own."""

import hashlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from zoo.categories import CATEGORIES


@pytest.fixture(scope="session", autouse=True)
def zoo_home(tmp_path_factory: pytest.TempPathFactory):
    """Worlds, features and downloads of the tests never touch the user's cache."""
    home = tmp_path_factory.mktemp("zoo_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSTANCE_ZOO_HOME", str(home))
        yield home


def files_of(root: Path) -> dict[str, str]:
    """Every file under a folder with a hash of its bytes."""
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def draw_identity(rng: np.random.Generator, size: int = 32) -> np.ndarray:
    """A coarse random colour pattern, easy to tell from another."""
    return np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((size // 4, size // 4, 1))).astype(np.uint8)


def write_identities(root: Path, identities: int = 20, views: int = 4, size: int = 32, seed: int = 0) -> Path:
    """A folder for each identity; views differ by noise and brightness."""
    rng = np.random.default_rng(seed)
    for number in range(identities):
        pattern = draw_identity(rng, size).astype(float)
        folder = root / f"id_{number:03d}"
        folder.mkdir(parents=True)
        for view in range(views):
            image = pattern * rng.uniform(0.6, 1.0) + rng.normal(0, 12, pattern.shape)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{view}.png")
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 identities with 4 images each, not to be changed."""
    return write_identities(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def restored_categories():
    """Categories that a test registers or replaces are as before after it."""
    with patch.dict(CATEGORIES):
        yield
