"""The tracing core: a camera, smoothly joined solids, and where the camera's rays meet them.

Everything is a *solid*: an ellipsoid, perhaps tapered like an egg. Neighbouring solids melt into each other
(a log-sum-exp union of their distances), so that a handful of them makes a body and not a pile of balls.
Only element-wise NumPy is used, no BLAS, so the pixels do not depend on the number of threads.
"""

from dataclasses import dataclass

import numpy as np

from zoo.world.render.geometry import Floats, Ints, Mask

_STRIDE = np.float32(0.03)  # least step of a ray that moves away from what it grazed
_STEPS = 14  # most rays arrive in four; those that graze a solid on their way need more
_MARGIN = 2.6  # blend radii beyond which a solid's pull on the surface (e^-2.6 = 7 %) is dropped


@dataclass(frozen=True)
class Solids:
    """Ellipsoids with an optional taper along their third axis.

    Args:
        centre: (S, 3).
        axes: columns are the solid's own axes, (S, 3, 3), orthonormal.
        radii: half lengths along the own axes, (S, 3).
        taper: in (-1, 1), how much thinner the positive end of the third axis is, (S,).
    """

    centre: Floats
    axes: Floats
    radii: Floats
    taper: Floats

    def __len__(self) -> int:
        return len(self.centre)

    def corners(self) -> Floats:
        """Corners of the upright boxes around the ellipsoids, tapers left out: (8 S, 3)."""
        reach = np.sqrt(((self.axes * self.radii[:, None, :]) ** 2).sum(2))
        signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], np.float32)
        return (self.centre[:, None] + signs * reach[:, None]).reshape(-1, 3)

    def to_unit(self, grow: float = 0.0) -> Floats:
        """Matrices (S, 3, 3) that take an offset from the centre to the unit ball, grown by ``grow``."""
        radii = self.radii.copy()
        if grow:
            height = np.linspace(-1, 1, 21, dtype=np.float32)
            width = (1 - self.taper[:, None] * height) * np.sqrt(1 - height * height)
            radii[:, :2] *= width.max(1, keepdims=True)
            radii += grow
        return (self.axes.transpose(0, 2, 1) / radii[:, :, None]).astype(np.float32)


@dataclass(frozen=True)
class Hits:
    """Where rays meet a union of solids; H rays hit, M (ray, solid) pairs took part.

    Args:
        ray: index of each ray that hit, (H,).
        depth: distance from the camera, (H,).
        point: (3, H). normal: unit, outward, (3, H).
        starts: first pair of each hit, (H,). solid: solid of each pair, (M,).
        weight: how much the pair's solid makes up the surface there, sums to 1 over a hit, (M,).
        local: coordinates of the point in the pair's unit ball, (3, M).
    """

    ray: Ints
    depth: Floats
    point: Floats
    normal: Floats
    starts: Ints
    solid: Ints
    weight: Floats
    local: Floats

    def blend(self, value: Floats) -> Floats:
        """Mixes one number per solid (S,) by the solids' weights at each hit: (H,)."""
        return np.add.reduceat(self.weight * value.take(self.solid), self.starts)

    def carried_to(self, solids: Solids) -> Floats:
        """The hit points moved along with their solids to the place these have in ``solids``: (3, H)."""
        frame = solids.axes * solids.radii[:, None, :]
        moved = [
            np.add.reduceat(self.weight * (along + solids.centre[:, k].take(self.solid)), self.starts)
            for k, along in enumerate(_times(frame, self.solid, *self.local))
        ]
        return np.stack(moved)


def _times(matrix: Floats, which: Ints, x: Floats, y: Floats, z: Floats) -> list[Floats]:
    """matrix[which] times (x, y, z), with matrices (S, 3, 3) and all else (M,)."""
    return [m[:, 0].take(which) * x + m[:, 1].take(which) * y + m[:, 2].take(which) * z for m in matrix.swapaxes(0, 1)]


def _candidates(solids: Solids, origin: Floats, rays: Floats, grow: float) -> tuple[Ints, Ints, Floats, Floats]:
    """(ray, solid, depth in, depth out) of all rays that touch a solid grown by ``grow``, ordered by ray."""
    unit = solids.to_unit(grow)
    start = np.einsum("sij,sj->si", unit, origin - solids.centre)
    inside = (start * start).sum(1) - 1.0
    # The discriminant of the ray's quadratic equation is itself a quadratic form in the ray's direction.
    along = np.einsum("sij,si->sj", unit, start)
    gram = np.einsum("sij,sik->sjk", unit, unit)
    form = along[:, :, None] * along[:, None, :] - inside[:, None, None] * gram
    x, y, z = rays
    found = []
    for s in range(len(solids)):
        f = form[s]
        value = x * (f[0, 0] * x + 2 * f[0, 1] * y) + y * (f[1, 1] * y + 2 * f[1, 2] * z)
        value += z * (f[2, 2] * z + 2 * f[0, 2] * x)
        found.append(np.flatnonzero(value > 0))
    solid = np.repeat(np.arange(len(solids)), [len(f) for f in found])
    ray = np.concatenate(found)
    order = np.argsort(ray.astype(np.uint16) if rays.shape[1] < 65536 else ray, kind="stable")
    ray, solid = ray[order], solid[order]
    dx, dy, dz = x[ray], y[ray], z[ray]
    b = along[solid, 0] * dx + along[solid, 1] * dy + along[solid, 2] * dz
    ux, uy, uz = _times(unit, solid, dx, dy, dz)
    a = ux * ux + uy * uy + uz * uz
    half = np.sqrt(np.maximum(b * b - a * inside[solid], 0))
    entry, middle = (-b - half) / a, -b / a
    # Halfway through a solid that the ray goes well into, it is inside: what begins behind is never seen.
    core = ((solids.radii / (solids.radii + grow)).min(1) * (1 - np.abs(solids.taper))) ** 2
    deep = np.where((half / a) ** 2 * a > 1 - core[solid], middle, np.float32(np.inf))
    shown = entry <= np.minimum.reduceat(deep, _starts(ray))[_ranks(ray)]
    return ray[shown], solid[shown], entry[shown], (2 * middle - entry)[shown]


def _starts(ray: Ints) -> Ints:
    """Where each run of equal numbers begins in ``ray`` (M,)."""
    change = np.empty(len(ray), bool)
    change[:1] = True
    np.not_equal(ray[1:], ray[:-1], out=change[1:])
    return np.flatnonzero(change)


def _ranks(ray: Ints) -> Ints:
    """Number of the run of equal numbers that each entry of ``ray`` (M,) belongs to."""
    rank = np.zeros(len(ray), np.intp)
    np.cumsum(ray[1:] != ray[:-1], out=rank[1:])
    return rank


def _distance(local: Floats, inverse: Floats, taper: Floats) -> tuple[Floats, list[Floats]]:
    """Approximate distance (M,) from points in unit-ball coordinates, and its gradient along the own axes."""
    x, y, z = local
    stretch = 1.0 / (1.0 - taper * np.clip(z, -1.0, 1.0))
    x, y = x * stretch, y * stretch
    flat = x * x + y * y
    norm = np.sqrt(flat + z * z) + 1e-6
    slopes = [x * stretch * inverse[0], y * stretch * inverse[1], (z + flat * taper * stretch) * inverse[2]]
    steep = np.sqrt(slopes[0] * slopes[0] + slopes[1] * slopes[1] + slopes[2] * slopes[2]) + 1e-6
    return norm * (norm - 1.0) / steep, [slope / steep for slope in slopes]


def trace(solids: Solids, origin: Floats, rays: Floats, blend: float, tolerance: float = 0.006) -> Hits:
    """First hits of rays (3, N) from ``origin`` with the smooth union of ``solids``.

    Args:
        blend: radius over which neighbouring solids melt together, in world units.
        tolerance: largest distance that still counts as a hit, in world units.
    """
    ray, solid, entry, leave = _candidates(solids, origin, rays, _MARGIN * blend)
    if len(ray) == 0:
        none, floats = np.zeros(0, np.intp), np.zeros((3, 0), np.float32)
        return Hits(none, floats[0], floats, floats, none, none, floats[0], floats)
    starts = _starts(ray)
    first = ray[starts]
    depth = np.minimum.reduceat(entry, starts)
    unit = solids.to_unit()
    base = np.einsum("sij,sj->si", unit, origin - solids.centre)
    shape = np.concatenate([base, 1.0 / solids.radii, solids.taper[:, None]], axis=1).T.astype(np.float32)
    slope = np.stack(_times(unit, solid, *(axis[ray] for axis in rays)))
    pairs = _Pairs(solid, _ranks(ray), slope, np.concatenate([shape.take(solid, axis=1), [entry, leave]]))
    pairs, depth = _march(pairs, depth, blend, tolerance)
    return _gather(pairs, depth, first, solids, origin, rays, blend)


@dataclass(frozen=True)
class _Pairs:
    """(solid, ray) pairs ordered by ray: M pairs of R rays.

    ``slope`` (3, M) is the ray's direction in the solid's unit ball; ``shape`` (9, M) stacks the ray's start
    there, the inverse radii, the taper, and the depths where the ray enters and leaves the grown solid.
    """

    solid: Ints
    ray: Ints
    slope: Floats
    shape: Floats

    def only(self, rays: Mask) -> "_Pairs":
        """The pairs of the rays where ``rays`` (R,) is true; the numbers of the rays do not change."""
        keep = np.flatnonzero(rays[self.ray])
        return _Pairs(self.solid[keep], self.ray[keep], self.slope.take(keep, axis=1), self.shape.take(keep, axis=1))

    def at(self, depth: Floats) -> Floats:
        """Unit-ball coordinates (3, M) at the rays' depths (R,)."""
        return self.shape[:3] + depth.take(self.ray) * self.slope

    @property
    def starts(self) -> Ints:
        """First pair of each ray that has any."""
        return _starts(self.ray)


def _march(pairs: _Pairs, depth: Floats, blend: float, tolerance: float) -> tuple[_Pairs, Floats]:
    """Newton's steps along the rays from ``depth`` (R,) until they meet the surface or leave the last solid.

    Returns the pairs of the rays that meet it, and all depths.
    """
    arrived = np.zeros(len(depth), bool)
    active = pairs
    for k in range(_STEPS):
        starts = active.starts
        ray = active.ray[starts]
        inverse = active.shape[3:6]
        distance, gradient = _distance(active.at(depth), inverse, active.shape[6])
        pull = np.exp(np.minimum(distance * np.float32(-1 / blend), 60.0))
        fall = active.slope / inverse
        fall = gradient[0] * fall[0] + gradient[1] * fall[1] + gradient[2] * fall[2]
        total = np.add.reduceat(pull, starts) + np.float32(1e-30)
        fall = np.add.reduceat(pull * fall, starts) / total
        field = -np.float32(blend) * np.log(total)
        # Towards a convex solid Newton's step is never too long; away from one, a step stays below a limb's
        # width.
        gain = np.where(fall > 0, np.maximum(field, _STRIDE), field / np.maximum(-fall, 0.3))
        here = depth[ray] + np.where(field > tolerance, gain, field / np.maximum(-fall, 0.5))
        arrived[ray] = np.abs(field) < tolerance
        if k % 2:
            at = here.take(_ranks(active.ray))
            entry, leave = active.shape[7:]
            ahead = np.minimum.reduceat(np.where(leave > at, entry, np.float32(np.inf)), starts)
            open_ = np.zeros(len(depth), bool)
            open_[ray] = (np.abs(field) >= 0.3 * tolerance) & (ahead < np.inf)
            here = np.where(open_[ray], np.maximum(here, ahead), here)  # leaps over empty space
            depth[ray] = here
            active = active.only(open_)
            if len(active.ray) == 0:
                break
        else:
            depth[ray] = here
    return pairs.only(arrived), depth


def _gather(
    pairs: _Pairs, depth: Floats, first: Ints, solids: Solids, origin: Floats, rays: Floats, blend: float
) -> Hits:
    """The surface's points, normals and weights where the rays of ``pairs`` have arrived."""
    if len(pairs.ray) == 0:
        none, floats = np.zeros(0, np.intp), np.zeros((3, 0), np.float32)
        return Hits(none, floats[0], floats, floats, none, none, floats[0], floats)
    local, starts = pairs.at(depth), pairs.starts
    distance, gradient = _distance(local, pairs.shape[3:6], pairs.shape[6])
    pull = np.exp(np.minimum(distance * np.float32(-1 / blend), 60.0))
    weight = pull / np.add.reduceat(pull, starts).take(_ranks(pairs.ray))
    pushed = _times(solids.axes, pairs.solid, *gradient)
    normal = np.stack([np.add.reduceat(weight * part, starts) for part in pushed])
    normal /= np.sqrt((normal * normal).sum(0)) + 1e-6
    kept = pairs.ray[starts]
    ray, depth = first[kept], depth[kept]
    point = origin[:, None] + depth * rays[:, ray]
    return Hits(ray, depth, point, normal, starts, pairs.solid, weight, local)


def shade_of(solids: Solids, points: Floats, light: Floats, softness: float, skip: float = 0.0) -> Floats:
    """How much light from direction ``light`` (3,) reaches points (3, N): 0 in full shadow, 1 in the open.

    Args:
        softness: width of the penumbra in units of a solid's radius.
        skip: solids whose unit ball, grown by this share, holds the point cast no shadow on it.
    """
    unit = solids.to_unit()
    toward = np.einsum("sij,j->si", unit, light)
    start = -np.einsum("sij,sj->si", unit, solids.centre)
    ahead, here = np.zeros((2, len(solids), points.shape[1]), np.float32)
    for k in range(3):
        m = unit[:, k, :, None]
        along = m[:, 0] * points[0] + m[:, 1] * points[1] + m[:, 2] * points[2] + start[:, k, None]
        ahead -= along * toward[:, k, None]
        here += along * along
    nearest = np.sqrt(np.maximum(here - ahead * ahead / (toward * toward).sum(1, keepdims=True), 0))
    cover = np.clip((1 + softness - nearest) * np.float32(0.5 / softness), 0, 1)
    cover *= (ahead > 0) & (here > (1 + skip) ** 2 if skip else True)
    return (1 - cover).prod(0)
