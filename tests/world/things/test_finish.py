"""The finish: every print in its three colours."""

import warnings

import numpy as np
import pytest

from zoo.world.render.shapes import trace_shapes
from zoo.world.render.texture import stream
from zoo.world.things.finish import EMBLEMS, Finish, Print, paint_finish
from zoo.world.things.maker import Maker
from zoo.world.things.still_life import frame_shapes


@pytest.mark.parametrize("pattern", ["plain", "stripes", "bands", "dots", "checks", "emblem"])
def test_prints_are_of_three_colours_and_differ_with_their_numbers(pattern: str) -> None:
    make = Maker()
    make.shell("main", [(0.25, 0.0), (0.25, 0.6)])
    make.box("main", (0, 0.6, 0.3), (0.2, 0.2, 0.3))
    figure = make.shapes()
    camera = frame_shapes(figure, 0.0, 0.2, 0.0, 3.0, 0.95)
    seen = trace_shapes(figure, camera, camera.rays(96))
    colours = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(len(EMBLEMS)):
            layout = Print.draw(stream(seed))
            layout.choice["emblem"][:] = (seed + 0.5) / len(EMBLEMS)
            layout.choice["wear"][:] = 1
            layout.shift["tint"][:] = 0.5
            finish = Finish.of("ceramic", pattern, ("red", "white", "blue"), layout, 0)
            colour = paint_finish(finish, figure, seen).colour
            known = np.stack([finish.main, finish.second, finish.third])
            gap = np.abs(colour.T[:, None] - known[None]).sum(2)
            assert (gap.min(1) < 0.02).mean() > 0.6  # the rest are soft edges
            share = np.bincount(gap.argmin(1), minlength=3) / len(gap)
            assert (share[1:].sum() > 0.02) == (pattern != "plain")
            assert share[0] > 0.15
            colours.append(colour)
    if pattern != "plain":
        assert all(np.abs(one - other).mean() > 0.005 for one, other in zip(colours, colours[1:], strict=False))
