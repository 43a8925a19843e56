"""What the tests of recipes share."""

from collections.abc import Iterator

import pytest

import fusion
from zoo.contracts import FusionAdapter


@pytest.fixture(scope="module", autouse=True)
def only_adapters_of_fusion() -> Iterator[None]:
    """Ablations compare every adapter that has been imported: here none that other tests define."""
    own: list[type[FusionAdapter]] = [a for a in fusion.adapters() if a.__module__.startswith("fusion.")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "adapters", lambda: own)
        yield
