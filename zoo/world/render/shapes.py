"""Shapes with edges (boxes, balls, rods and turned shells), and where rays meet them, in closed form.

Unlike the solids of `zoo.world.render.solids` they do not melt into each other; `zoo.world.things.maker` builds them.

Only element-wise NumPy is used, no BLAS, so the pixels do not depend on the number of threads.
"""

from dataclasses import dataclass

import numpy as np

from zoo.world.render.geometry import Camera, Floats, Ints, Mask
from zoo.world.render.solids import Solids

BOX, BALL, ROD, BAND, RING = range(5)
_MISS = np.float32(np.inf)
_NEWTON = 4  # steps onto a rounded edge
_BAR = np.float32(0.0055)  # half width of a grille's bars
_LEAST = 0.16  # half height of a box's print; of a lower box only the middle of the print is seen


@dataclass(frozen=True)
class Shapes:
    """A made object of E elements; in an element's own frame it has a standard position.

    Args:
        kind: `BOX`, `BALL`, `ROD`, `BAND` (side of a cone) or `RING` (flat), (E,).
        centre: (E, 3). axes: columns are the own axes, orthogonal, perhaps scaled, (E, 3, 3).
        size: what else describes an element, (E, 10), see `zoo.world.things.maker.Maker`.
        low, high: corners of a box around it in its own frame, (E, 3).
        slot: number of the slot in ``slots`` that gives its colour, (E,).
        canvas: height of the middle, height and radius of the surface that a print wraps around, (E, 3).
        slots: names, e.g. ``main``.
        proxies: ellipsoids that cast about the same shadow.
    """

    kind: Ints
    centre: Floats
    axes: Floats
    size: Floats
    low: Floats
    high: Floats
    slot: Ints
    canvas: Floats
    slots: tuple[str, ...]
    proxies: Solids

    def corners(self) -> Floats:
        """Corners of the boxes around the elements, in the world: (E, 8, 3)."""
        picks = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        local = np.where(picks[None] == 0, self.low[:, None], self.high[:, None])
        return np.einsum("eij,ekj->eki", self.axes, local) + self.centre[:, None]


@dataclass(frozen=True)
class ShapeHits:
    """Where N rays first meet shapes; H of them hit.

    Args:
        ray: index of each ray that hit, (H,). depth: distance from the camera, (H,).
        element: what it hit, (H,). point, normal: in the world, (3, H); the normal faces the camera.
        local: the point in the element's own frame, (3, H).
    """

    ray: Ints
    depth: Floats
    element: Ints
    point: Floats
    normal: Floats
    local: Floats


def trace_shapes(shapes: Shapes, camera: Camera, rays: Floats) -> ShapeHits:
    """First hits of a camera's rays (3, side * side) with shapes."""
    side = round(rays.shape[1] ** 0.5)
    inverse = _inverse(shapes)
    pairs = _pairs(shapes, camera, side)
    depth = np.full(rays.shape[1], _MISS, np.float32)
    met = []
    for kind, meet in ((BOX, _box), (BALL, _ball), (ROD, _rod), (BAND, _band), (RING, _ring)):
        which = np.flatnonzero(shapes.kind == kind)
        which = which[[len(pairs[e]) > 0 for e in which]] if len(which) else which
        if len(which) == 0:
            continue
        ray, element = np.concatenate([pairs[e] for e in which]), np.repeat(which, [len(pairs[e]) for e in which])
        starts, slopes, nearest = [], [], []
        for e in which:
            ahead = rays[:, pairs[e]]
            away = shapes.centre[e] - camera.origin
            near = away[0] * ahead[0] + away[1] * ahead[1] + away[2] * ahead[2]
            slope = np.einsum("ij,jn->in", inverse[e], ahead)
            # From the ray's point nearest to the centre, where numbers are small and float32 is exact enough.
            starts.append(slope * near - np.einsum("ij,j->i", inverse[e], away)[:, None])
            slopes.append(slope)
            nearest.append(near)
        size = shapes.size[element].T
        along = meet(np.concatenate(starts, axis=1), np.concatenate(slopes, axis=1), size) + np.concatenate(nearest)
        hit = np.flatnonzero(along < _MISS)
        np.minimum.at(depth, ray[hit], along[hit])
        met.append((ray[hit], element[hit], along[hit]))
    first = np.full(rays.shape[1], -1)
    for ray, element, along in met:
        won = along == depth[ray]
        first[ray[won]] = element[won]
    ray = np.flatnonzero(first >= 0)
    return _gather(shapes, inverse, ray, first[ray], depth[ray], camera.origin, rays)


def _inverse(shapes: Shapes) -> Floats:
    """Matrices (E, 3, 3) into the elements' own frames."""
    scale = (shapes.axes * shapes.axes).sum(1)
    return (shapes.axes / scale[:, None, :]).transpose(0, 2, 1)


def _pairs(shapes: Shapes, camera: Camera, side: int) -> list[Ints]:
    """The rays that may meet each element: those in the rectangle around it in the picture."""
    flat = camera.project(shapes.corners().reshape(-1, 3)).reshape(-1, 8, 2)
    column = (flat[:, :, 0] + 1) * (side / 2)
    row = (1 - flat[:, :, 1]) * (side / 2)
    edges = np.stack([column.min(1), column.max(1) + 1, row.min(1), row.max(1) + 1], 1)
    edges = np.clip(np.floor(edges), 0, side).astype(int)
    numbers = np.arange(side)
    return [(numbers[top:bottom, None] * side + numbers[left:right]).ravel() for left, right, top, bottom in edges]


def _gather(
    shapes: Shapes, inverse: Floats, ray: Ints, element: Ints, depth: Floats, origin: Floats, rays: Floats
) -> ShapeHits:
    """Points and normals of the hits."""
    ahead = rays[:, ray]
    point = origin[:, None] + depth * ahead
    away = point - shapes.centre.T[:, element]
    to = inverse[element]
    local = np.stack([to[:, i, 0] * away[0] + to[:, i, 1] * away[1] + to[:, i, 2] * away[2] for i in range(3)])
    inward = np.stack([to[:, i, 0] * ahead[0] + to[:, i, 1] * ahead[1] + to[:, i, 2] * ahead[2] for i in range(3)])
    normal = np.zeros_like(local)
    kinds = shapes.kind[element]
    for kind, upright in ((BOX, _box_normal), (BALL, _ball_normal), (ROD, _rod_normal), (BAND, _band_normal)):
        at = np.flatnonzero(kinds == kind)
        if len(at):
            normal[:, at] = upright(local[:, at], shapes.size[element[at]].T)
    normal[2, kinds == RING] = 1
    normal *= np.where((normal * inward).sum(0) > 0, np.float32(-1), np.float32(1))
    # A normal goes into the world with the inverse's transpose.
    world = np.stack([to[:, 0, i] * normal[0] + to[:, 1, i] * normal[1] + to[:, 2, i] * normal[2] for i in range(3)])
    world /= np.sqrt((world * world).sum(0)) + 1e-9
    return ShapeHits(ray, depth, element, point, world, local)


# Where rays from ``start`` (3, M) along ``slope`` (3, M) meet the elements of one kind, in their own frames.


def _box(start: Floats, slope: Floats, size: Floats) -> Floats:
    safe = np.where(np.abs(slope) < 1e-7, np.float32(1e-7), slope)
    half, edge = size[:3], size[3]
    one, other = (-half - start) / safe, (half - start) / safe
    enter = np.minimum(one, other).max(0)
    leave = np.maximum(one, other).min(0)
    along = np.where(enter <= leave, enter, _MISS)
    inner = half - edge
    beyond = np.abs(start + np.where(enter <= leave, enter, 0) * slope) - inner
    bent = np.flatnonzero((along < _MISS) & ((beyond > 1e-6).sum(0) > 1))
    if len(bent) == 0:
        return along
    start, slope, inner, edge, at = start[:, bent], slope[:, bent], inner[:, bent], edge[bent], along[bent]
    gap = np.zeros_like(at)
    for _ in range(_NEWTON):
        point = start + at * slope
        off = np.clip(point, -inner, inner)
        off = point - off
        far = np.sqrt((off * off).sum(0)) + 1e-9
        gap = far - edge
        fall = (off * slope).sum(0) / far
        # The distance to a convex body is convex along a ray: Newton never leaps over it.
        at = np.where(fall < -1e-3, at - gap / np.minimum(fall, -1e-3), at + np.where(gap > 1e-4, 9, 0))
    along[bent] = np.where(gap < 0.15 * edge + 1e-3, at, _MISS)
    return along


def _ball(start: Floats, slope: Floats, size: Floats) -> Floats:
    a, b = (slope * slope).sum(0), (start * slope).sum(0)
    inside = b * b - a * ((start * start).sum(0) - 1)
    return np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, _MISS)


def _rod(start: Floats, slope: Floats, size: Floats) -> Floats:
    half, radius = size[0], size[1]
    a = slope[0] ** 2 + slope[1] ** 2 + 1e-9
    b = start[0] * slope[0] + start[1] * slope[1]
    inside = b * b - a * (start[0] ** 2 + start[1] ** 2 - radius * radius)
    along = (-b - np.sqrt(np.maximum(inside, 0))) / a
    height = start[2] + along * slope[2]
    on_side = (inside > 0) & (np.abs(height) <= half)
    # Elsewhere one of the round ends may be met: the one on the side where the cylinder was left.
    end = start[2] - np.where(height > 0, half, -half)
    b = b + end * slope[2]
    a = a + slope[2] ** 2
    cap = b * b - a * (start[0] ** 2 + start[1] ** 2 + end * end - radius * radius)
    at_end = (-b - np.sqrt(np.maximum(cap, 0))) / a
    return np.where(on_side, along, np.where((inside > 0) & (cap > 0), at_end, _MISS))


def _band(start: Floats, slope: Floats, size: Floats) -> Floats:
    low_r, low_z, high_r, high_z = size[:4]
    lean = (high_r - low_r) / (high_z - low_z)
    base = low_r + lean * (start[2] - low_z)
    climb = lean * slope[2]
    a = slope[0] ** 2 + slope[1] ** 2 - climb * climb
    a = np.where(np.abs(a) < 1e-8, np.float32(1e-8), a)
    b = start[0] * slope[0] + start[1] * slope[1] - base * climb
    inside = b * b - a * (start[0] ** 2 + start[1] ** 2 - base * base)
    root = np.sqrt(np.maximum(inside, 0))
    one, other = (-b - root) / a, (-b + root) / a
    along = np.full_like(a, _MISS)
    for at in (np.maximum(one, other), np.minimum(one, other)):
        height = start[2] + at * slope[2]
        open_ = (inside >= 0) & (height >= low_z) & (height <= high_z) & (base + at * climb >= 0)
        solid = np.flatnonzero(open_)
        wide = np.maximum(low_r, high_r)[solid]
        shut = _barred(start[:, solid] + at[solid] * slope[:, solid], wide, size[:, solid])
        along[solid[shut]] = at[solid[shut]]
    return along


def _ring(start: Floats, slope: Floats, size: Floats) -> Floats:
    at = -start[2] / np.where(np.abs(slope[2]) < 1e-7, np.float32(1e-7), slope[2])
    x, y = start[0] + at * slope[0], start[1] + at * slope[1]
    away = np.sqrt(x * x + y * y)
    wide = np.maximum(size[0], size[1])
    on = np.flatnonzero((away <= wide) & (away >= np.minimum(size[0], size[1])))
    on = on[_barred(np.stack([x[on], y[on]]), wide[on], size[:, on])]
    along = np.full_like(at, _MISS)
    along[on] = at[on]
    return along


def _barred(point: Floats, wide: Floats, size: Floats) -> Mask:
    """Whether a grille of radius ``wide`` (M,) is closed at ``point`` (x and y, M); without bars it always is."""
    spokes, rings = size[8], size[9]
    shut = (spokes == 0) & (rings == 0)
    if shut.all():
        return shut
    away = np.sqrt(point[0] ** 2 + point[1] ** 2)
    turn = np.arctan2(point[1], point[0]) * spokes
    bar = np.abs(np.sin(turn / 2)) * away * 2 / np.maximum(spokes, 1) < _BAR
    phase = away / wide * rings
    hoop = np.abs(phase - np.round(phase)) * wide / np.maximum(rings, 1) < _BAR
    return shut | (bar & (spokes > 0)) | (hoop & (rings > 0))


# Outward normals (3, M), not of unit length, at points (3, M) in the elements' own frames.


def _box_normal(point: Floats, size: Floats) -> Floats:
    inner = size[:3] - size[3]
    return point - np.clip(point, -inner, inner)


def _ball_normal(point: Floats, size: Floats) -> Floats:
    return point.copy()


def _rod_normal(point: Floats, size: Floats) -> Floats:
    normal = point.copy()
    normal[2] -= np.clip(point[2], -size[0], size[0])
    return normal


def _band_normal(point: Floats, size: Floats) -> Floats:
    share = (point[2] - size[1]) / (size[3] - size[1])
    out = size[4] + (size[6] - size[4]) * share
    away = np.sqrt(point[0] ** 2 + point[1] ** 2) + 1e-9
    return np.stack([point[0] / away * out, point[1] / away * out, size[5] + (size[7] - size[5]) * share])


def on_canvas(shapes: Shapes, hits: ShapeHits) -> tuple[Floats, Floats, Floats]:
    """Where the hits lie on the surfaces that prints are made for.

    Returns:
        across and up (H,) in units of the surface's height with (0, 0) in its middle, and its width in the same
        units (H,). A turned shell is printed on both halves, a box on each face, a rod not at all (up = 9).
    """
    kind, canvas = shapes.kind[hits.element], shapes.canvas[hits.element]
    x, y, z = hits.local
    middle, height, radius = canvas.T
    angle = np.arctan2(y, x)
    angle = np.mod(angle + np.pi / 2, np.pi) - np.pi / 2
    across, up, wide = angle * radius / height, (z - middle) / height, np.pi * radius / height
    flat = kind == RING
    across, up = np.where(flat, y / (2 * radius), across), np.where(flat, -x / (2 * radius), up)
    wide = np.where(flat, 1, wide)
    boxes = np.flatnonzero(kind == BOX)
    if len(boxes):
        half = shapes.size[hits.element[boxes], :3].T
        at = hits.local[:, boxes]
        face = np.abs(at / half).argmax(0)
        sign = np.sign(np.take_along_axis(at, face[None], 0)[0])
        tall = np.maximum(np.where(face == 2, half[0], half[2]), _LEAST)
        broad = np.where(face == 1, half[0], half[1])
        across[boxes] = np.where(face == 1, -at[0] * sign, np.where(face == 0, at[1] * sign, at[1])) / (2 * tall)
        up[boxes] = np.where(face == 2, -at[0], at[2]) / (2 * tall)
        wide[boxes] = broad / tall
    up = np.where(kind == ROD, 9, up)
    return across.astype(np.float32), up.astype(np.float32), wide.astype(np.float32)
