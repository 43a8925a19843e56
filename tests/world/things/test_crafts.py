"""The crafts: every word that one knows makes an object."""

import numpy as np
import pytest

from zoo.world.things.crafts import CRAFTS
from zoo.world.things.maker import Maker


@pytest.mark.parametrize("kind", list(CRAFTS))
def test_every_option_of_a_craft_can_be_made_and_seen(kind: str) -> None:
    craft = CRAFTS[kind]
    options = craft.shapes | craft.details
    plain = {name: words[0] for name, words in options.items()}
    seen_shapes = []
    for name, words in options.items():
        for word in dict.fromkeys(words):
            rng = np.random.default_rng(len(seen_shapes))
            numbers = {part: float(rng.choice(ends)) for part, ends in craft.ranges.items()}
            make = Maker()
            craft.assemble(make, numbers, plain | {name: word})
            figure = make.shapes()
            corners = figure.corners()
            assert np.isfinite(corners).all()
            assert "main" in figure.slots
            assert corners[:, :, 2].min() > -0.06  # it stands on the floor and is of a room's size
            assert 0.5 < (corners.max((0, 1)) - corners.min((0, 1))).max() < 1.6
            seen_shapes.append(corners)
    assert set(craft.patterns) <= {"plain", "stripes", "bands", "dots", "checks", "emblem"}
