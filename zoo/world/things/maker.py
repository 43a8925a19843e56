"""Assembles objects, shape by shape: boxes, rods, balls and turned shells.

A turned shell is a profile that revolves about its own z axis; it is thin and has an inside, and it may
be pierced like a grille.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from zoo.world.render.geometry import Floats, turn
from zoo.world.render.shapes import BALL, BAND, BOX, RING, ROD, Shapes
from zoo.world.render.solids import Solids

Numbers = dict[str, float]
Words = dict[str, str]
Point = Sequence[float] | Floats  # (3,)

_SIZES = 10  # numbers that describe an element, see `Maker`
_SMOOTH = 0.6  # neighbouring bands whose normals' cosine is above this look like one bent sheet


def arch(points: int, start: float, end: float) -> list[tuple[float, float]]:
    """Cosines and sines of ``points`` angles from start to end."""
    return [(float(np.cos(a)), float(np.sin(a))) for a in np.linspace(start, end, points)]


@dataclass
class Maker:
    """Puts an object together, shape by shape; lengths are in world units, the floor is z = 0.

    Sizes of the elements: box: half lengths, radius of the edges; rod: half length, radius; band: radius and
    height of its lower and upper end, normal (outward, up) at both ends, spokes and rings of its grille; ring:
    radius of both edges, 0, 0, and spokes and rings at the same places as a band's.
    """

    rows: list[tuple[int, Floats, Floats, list[float], Floats, Floats, str, tuple[float, float, float]]] = field(
        default_factory=list
    )
    shadows: list[tuple[Floats, Floats, Floats]] = field(default_factory=list)

    def _add(
        self, kind: int, slot: str, centre: Floats, axes: Floats, size: list[float], low: Floats, high: Floats,
        canvas: tuple[float, float, float] = (0.0, 1.0, 1.0),
    ) -> None:  # fmt: skip
        padded = size + [0.0] * (_SIZES - len(size))
        self.rows.append((kind, np.asarray(centre, np.float32), axes, padded, low, high, slot, canvas))

    def _shadow(self, centre: Floats, axes: Floats, radii: Floats) -> None:
        self.shadows.append((np.asarray(centre, np.float32), axes, np.asarray(radii, np.float32)))

    def box(
        self, slot: str, centre: Point, half: tuple[float, float, float], edge: float = 0.012,
        axes: Floats | None = None,
    ) -> None:  # fmt: skip
        """A box with rounded edges."""
        axes = turn() if axes is None else axes
        reach = np.array(half, np.float32)
        edge = min(edge, 0.98 * float(reach.min()))
        self._add(BOX, slot, np.array(centre), axes, [*half, edge], -reach, reach)
        self._shadow(np.array(centre), axes, reach * 1.18)

    def ball(
        self, slot: str, centre: Point, radii: tuple[float, float, float],
        axes: Floats | None = None,
    ) -> None:  # fmt: skip
        """An ellipsoid."""
        axes = turn() if axes is None else axes
        scaled = (axes * np.array(radii, np.float32)).astype(np.float32)
        one = np.ones(3, np.float32)
        self._add(BALL, slot, np.array(centre), scaled, [], -one, one, (0.0, 2.0, radii[1] / radii[2]))
        self._shadow(np.array(centre), axes, np.array(radii))

    def rod(
        self, slot: str, points: Sequence[Point], radius: float | list[float], bend: int = 0
    ) -> None:  # fmt: skip
        """A round bar along ``points``, with one radius or one for each point; its corners are cut ``bend`` times."""
        radii = [radius] * len(points) if isinstance(radius, float | int) else radius
        line = np.array([(*point, r) for point, r in zip(points, radii, strict=True)])
        for _ in range(bend):  # Chaikin's corner cutting
            cut = np.stack([0.75 * line[:-1] + 0.25 * line[1:], 0.25 * line[:-1] + 0.75 * line[1:]], 1)
            line = np.concatenate([line[:1], cut.reshape(-1, 4)[1:-1], line[-1:]])
        for start, end in zip(line[:-1], line[1:], strict=True):
            a, b = start[:3], end[:3]
            length = float(np.sqrt(((b - a) ** 2).sum()))
            if length < 1e-5:
                continue
            thick = float(start[3] + end[3]) / 2
            axes = _frame_along((b - a) / length)
            reach = np.array([thick, thick, length / 2 + thick], np.float32)
            self._add(ROD, slot, (a + b) / 2, axes, [length / 2, thick], -reach, reach)
            if thick > 0.011:
                self._shadow((a + b) / 2, axes, reach)

    def shell(
        self, slot: str, profile: list[tuple[float, float]], centre: Point = (0.0, 0.0, 0.0),
        axes: Floats | None = None, grille: tuple[int, int] = (0, 0), casts: bool = True,
    ) -> None:  # fmt: skip
        """Revolves a profile of (radius, height) about z.

        Args:
            grille: number of spokes around and of rings along each piece of the profile; open in between.
            axes: columns may be scaled, which makes it oval.
        """
        axes = turn() if axes is None else axes
        line = np.array(profile, np.float32)
        low, high = float(line[:, 1].min()), float(line[:, 1].max())
        height = max(high - low, 1e-3)
        canvas = ((low + high) / 2, height, float(line[:, 0].max()))
        ahead = line[1:] - line[:-1]
        normals = np.stack([ahead[:, 1], -ahead[:, 0]], 1)
        normals /= np.sqrt((normals**2).sum(1, keepdims=True)) + 1e-9
        for k, (start, end) in enumerate(zip(line, line[1:], strict=False)):
            ends = [_joined(normals, k, k - 1), _joined(normals, k, k + 1)]
            wide = float(max(start[0], end[0]))
            if abs(end[1] - start[1]) < 1e-4:
                place = np.asarray(centre) + axes @ np.array([0, 0, start[1]])
                size = [float(start[0]), float(end[0]), 0, 0, 0, 0, 0, 0, *grille]
                reach = np.array([wide, wide, 1e-3], np.float32)
                self._add(RING, slot, place, axes, size, -reach, reach, canvas)
                continue
            if end[1] < start[1]:
                start, end, ends = end, start, ends[::-1]
            size = [float(v) for v in (*start, *end, *ends[0], *ends[1], *grille)]
            bottom, top = (np.array([s * wide, s * wide, z], np.float32) for s, z in ((-1, start[1]), (1, end[1])))
            self._add(BAND, slot, np.asarray(centre), axes, size, bottom, top, canvas)
        if casts:
            stretch = np.sqrt((axes**2).sum(0))
            middle = np.asarray(centre) + axes @ np.array([0, 0, (low + high) / 2])
            radii = np.array([canvas[2], canvas[2], max(height / 2 * 1.1, 0.01)]) * stretch
            self._shadow(middle, (axes / stretch).astype(np.float32), radii)

    def shapes(self) -> Shapes:
        """The finished object."""
        kind, centre, axes, size, low, high, slot, canvas = zip(*self.rows, strict=True)
        where, frames, radii = zip(*self.shadows, strict=True)
        slots = tuple(sorted(set(slot)))
        solids = Solids(np.stack(where), np.stack(frames), np.stack(radii), np.zeros(len(where), np.float32))
        return Shapes(
            np.array(kind), np.stack(centre), np.stack(axes).astype(np.float32), np.array(size, np.float32),
            np.stack(low), np.stack(high), np.array([slots.index(name) for name in slot]),
            np.array(canvas, np.float32), slots, solids,
        )  # fmt: skip


def _frame_along(z: Floats) -> Floats:
    """Orthonormal columns (3, 3) whose third is ``z`` (3,)."""
    helper = np.array([0.0, 1.0, 0.0]) if abs(z[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
    x = np.cross(helper, z)
    x /= np.sqrt((x * x).sum())
    return np.stack([x, np.cross(z, x), z], axis=1).astype(np.float32)


def _joined(normals: Floats, k: int, other: int) -> Floats:
    """Normal (2,) where pieces ``k`` and ``other`` of a profile meet: their mean where the bend is smooth."""
    if not 0 <= other < len(normals) or float((normals[k] * normals[other]).sum()) < _SMOOTH:
        return normals[k]
    mean = normals[k] + normals[other]
    return mean / np.sqrt((mean * mean).sum())
