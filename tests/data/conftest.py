import pytest

from tests.data.readers.trees import TREES


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """Reader -> a tree of its layout, not to be changed."""
    roots = {name: tmp_path_factory.mktemp(name) for name in TREES}
    for name, plant in TREES.items():
        plant(roots[name])
    return roots
