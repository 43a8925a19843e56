"""The maker of shapes."""

import numpy as np

from zoo.world.things.maker import Maker, arch


def test_a_cut_corner_keeps_the_ends_and_stays_inside() -> None:
    sharp, bent = Maker(), Maker()
    points = [(c, s, 0.5) for c, s in arch(4, 0.0, np.pi)]
    sharp.rod("main", points, 0.02)
    bent.rod("main", points, [0.02, 0.04, 0.04, 0.02], bend=2)
    one, other = sharp.shapes(), bent.shapes()
    assert len(other.kind) > len(one.kind)
    assert (other.corners().reshape(-1, 3).max(0) <= one.corners().reshape(-1, 3).max(0) + 0.05).all()
    for figure in (one, other):
        ends = figure.corners()[[0, -1]].mean(1)
        assert ends[0, 0] > 0.5 and ends[1, 0] < -0.5
