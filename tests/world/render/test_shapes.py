"""Shapes: rays hit them where a march along the rays in small steps does, and prints lie where they should."""

from collections.abc import Callable

import numpy as np
import pytest

from zoo.world.render.geometry import Floats, turn
from zoo.world.render.shapes import on_canvas, trace_shapes
from zoo.world.things.maker import Maker
from zoo.world.things.still_life import frame_shapes


def cases() -> dict[str, tuple[Maker, Callable[[Floats], Floats]]]:
    """Shapes, and how far points (3, N) are from their surfaces or inside (negative)."""
    lean = turn(0.4, 0.3, -0.5)

    def local(point: Floats) -> Floats:
        return np.einsum("ji,jn->in", lean, point - np.array([[0.1], [0.0], [0.5]]))

    def box(point: Floats) -> Floats:
        off = np.abs(local(point)) - np.array([[0.14], [0.24], [0.04]])
        return np.sqrt((np.maximum(off, 0) ** 2).sum(0)) + np.minimum(off.max(0), 0) - 0.06

    def ball(point: Floats) -> Floats:
        radii = np.array([[0.1], [0.2], [0.35]])
        return (np.sqrt((local(point) ** 2 / radii**2).sum(0)) - 1) * 0.1

    def rod(point: Floats) -> Floats:
        gap = np.full(point.shape[1], np.inf)
        path = np.array([[0.3, 0, 0.1], [0, 0.3, 0.3], [-0.2, -0.3, 0.6]])
        for a, b in zip(path, path[1:], strict=False):
            share = np.clip(((point - a[:, None]) * (b - a)[:, None]).sum(0) / ((b - a) ** 2).sum(), 0, 1)
            gap = np.minimum(gap, np.sqrt(((point - a[:, None] - share * (b - a)[:, None]) ** 2).sum(0)))
        return gap - 0.05

    def cup(point: Floats) -> Floats:
        """A thin wall of radius 0.2 to 0.3, from 0.1 to 0.6, with a floor."""
        at, height = np.sqrt(point[0] ** 2 + point[1] ** 2), point[2]
        gap = np.full(point.shape[1], np.inf)
        line = np.array([[0.0, 0.1], [0.2, 0.1], [0.3, 0.6]])
        for a, b in zip(line, line[1:], strict=False):
            share = np.clip(((at - a[0]) * (b - a)[0] + (height - a[1]) * (b - a)[1]) / ((b - a) ** 2).sum(), 0, 1)
            gap = np.minimum(gap, np.hypot(at - a[0] - share * (b - a)[0], height - a[1] - share * (b - a)[1]))
        return gap - 0.0005

    made = {name: Maker() for name in ("box", "ball", "rod", "cup")}
    made["box"].box("main", (0.1, 0, 0.5), (0.2, 0.3, 0.1), edge=0.06, axes=lean)
    made["ball"].ball("main", (0.1, 0, 0.5), (0.1, 0.2, 0.35), axes=lean)
    made["rod"].rod("main", [(0.3, 0, 0.1), (0, 0.3, 0.3), (-0.2, -0.3, 0.6)], 0.05)
    made["cup"].shell("main", [(0.0, 0.1), (0.2, 0.1), (0.3, 0.6)])
    return {name: (made[name], gap) for name, gap in (("box", box), ("ball", ball), ("rod", rod), ("cup", cup))}


@pytest.mark.parametrize("name", ["box", "ball", "rod", "cup"])
@pytest.mark.parametrize(("azimuth", "elevation"), [(0.0, 0.0), (0.7, 0.6), (3.9, 1.2), (np.pi / 2, np.pi / 2)])
def test_rays_hit_where_a_slow_march_does(name: str, azimuth: float, elevation: float) -> None:
    make, gap = cases()[name]
    figure = make.shapes()
    camera = frame_shapes(figure, azimuth, elevation, 0.1, 3.0, 0.95)
    rays = camera.rays(40)
    seen = trace_shapes(figure, camera, rays)
    depth = np.full(rays.shape[1], np.inf)
    found = np.full(rays.shape[1], False)
    at = np.full(rays.shape[1], 1.8)
    for _ in range(2500):  # sphere tracing with short steps; the gaps are never longer than the distances
        off = gap(camera.origin[:, None] + at * rays)
        found |= off < 5e-4
        at = np.where(found | (at > 4.5), at, at + np.maximum(0.8 * off, 2e-4))
    depth[found] = at[found]
    mine = np.full(rays.shape[1], np.inf)
    mine[seen.ray] = seen.depth
    assert (np.isfinite(mine) != found).mean() < 0.012  # grazing rays
    both = np.isfinite(mine) & found
    assert both.sum() > 150
    assert np.quantile(np.abs(mine[both] - depth[both]), 0.97) < 0.012
    np.testing.assert_allclose(np.sqrt((seen.normal**2).sum(0)), 1, atol=1e-4)
    assert (seen.normal * rays[:, seen.ray]).sum(0).max() < 1e-3  # they face the camera
    slope = np.stack([gap(seen.point + h[:, None]) - gap(seen.point - h[:, None]) for h in np.eye(3) * 1e-3])
    slope /= np.sqrt((slope**2).sum(0)) + 1e-12
    if name != "cup":  # a thin wall has no slope on itself
        assert np.quantile((slope * seen.normal).sum(0), 0.03) > 0.97


def test_the_nearest_of_many_elements_is_seen() -> None:
    make = Maker()
    for k in range(5):
        make.box("main" if k % 2 else "second", (0.2 * k, 0, 0.3), (0.02, 0.3, 0.3 - 0.03 * k))
    figure = make.shapes()
    camera = frame_shapes(figure, 0.0, 0.0, 0.0, 3.0, 0.9)
    seen = trace_shapes(figure, camera, camera.rays(64))
    middle = seen.element[seen.ray == 32 * 64 + 32]
    assert middle.tolist() == [4]
    assert set(seen.element.tolist()) == {0, 1, 2, 3, 4}  # each is a little larger than the one before it


def test_a_grille_lets_rays_through() -> None:
    make = Maker()
    make.shell("main", [(0.0, 0.0), (0.4, 0.0)], (0, 0, 0.4), turn(nod=np.pi / 2), grille=(8, 2))
    solid = Maker()
    solid.shell("main", [(0.0, 0.0), (0.4, 0.0)], (0, 0, 0.4), turn(nod=np.pi / 2))
    counts = []
    for figure in (make.shapes(), solid.shapes()):
        camera = frame_shapes(figure, 0.0, 0.0, 0.0, 3.0, 0.9)
        counts.append(len(trace_shapes(figure, camera, camera.rays(128)).ray))
    assert 0.05 < counts[0] / counts[1] < 0.4
    assert counts[1] == pytest.approx(np.pi / 4 * (0.9 * 128) ** 2, rel=0.05)


def test_a_print_is_on_both_halves_of_a_shell_and_not_on_a_rod() -> None:
    make = Maker()
    make.shell("main", [(0.25, 0.0), (0.25, 0.6)])
    make.rod("main", [(0, 0.4, 0.05), (0, 0.4, 0.5)], 0.05)
    figure = make.shapes()
    halves = []
    for azimuth in (0.0, np.pi):
        camera = frame_shapes(figure, azimuth, 0.0, 0.0, 3.0, 0.9)
        seen = trace_shapes(figure, camera, camera.rays(64))
        across, up, wide = on_canvas(figure, seen)
        assert (up[figure.kind[seen.element] == 2] == 9).all()
        shell = seen.element == 0
        np.testing.assert_allclose(up[shell], (seen.point[2, shell] - 0.3) / 0.6, atol=1e-4)
        assert np.abs(across[shell]).max() <= wide[shell].max() / 2 + 1e-4
        at = shell & (np.abs(seen.point[1]) < 0.02)
        halves.append(np.abs(across[at]).max())
    assert max(halves) < 0.05  # the middle of the print faces the front and the back
