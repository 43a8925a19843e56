"""What every renderer shares: the array types, rotations, and a pinhole camera."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.intp]
Mask = NDArray[np.bool_]


def turn(yaw: float = 0.0, nod: float = 0.0, tilt: float = 0.0) -> Floats:
    """Rotation about z (yaw), then y (nod, forward end down), then x (tilt): (3, 3)."""
    a, b, c = (np.cos(v) for v in (yaw, nod, tilt))
    d, e, f = (np.sin(v) for v in (yaw, nod, tilt))
    about_z = np.array([[a, -d, 0], [d, a, 0], [0, 0, 1]])
    about_y = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    about_x = np.array([[1, 0, 0], [0, c, -f], [0, f, c]])
    return (about_z @ about_y @ about_x).astype(np.float32)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        origin: position, (3,).
        axes: rows are the camera's right, up and forward directions, (3, 3), orthonormal.
        zoom: focal length in units of half the image's height.
        shift: where the optical axis meets the image, in units of half its height, (2,).
    """

    origin: Floats
    axes: Floats
    zoom: float
    shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def orbit(cls, target: Floats, azimuth: float, elevation: float, distance: float, roll: float) -> "Camera":
        """A camera on a sphere around ``target`` that looks at it (angles in radians, zoom 1)."""
        away = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        up = np.cross(away, right)
        tilted = np.stack([np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right, -away])
        return cls((target + distance * away).astype(np.float32), tilted.astype(np.float32), 1.0)

    def rays(self, height: int, width: int | None = None) -> Floats:
        """Unit directions of the pixels' rays, row by row: (3, height * width); a square image by default."""
        width = width or height
        across = (np.arange(width, dtype=np.float32) + 0.5) * (2.0 / height) - width / height
        down = (np.arange(height, dtype=np.float32) + 0.5) * (2.0 / height) - 1.0
        u = np.tile((across - self.shift[0]) / self.zoom, height)
        v = np.repeat((-down - self.shift[1]) / self.zoom, width)
        scale = 1.0 / np.sqrt(u * u + v * v + 1.0)
        right, up, forward = self.axes
        return ((right[:, None] * u + up[:, None] * v + forward[:, None]) * scale).astype(np.float32)

    def project(self, points: Floats) -> Floats:
        """Image coordinates, in units of half the height, of points (N, 3): (N, 2)."""
        local = np.einsum("nk,ak->na", points - self.origin, self.axes)
        return local[:, :2] / local[:, 2:] * np.float32(self.zoom) + np.array(self.shift, np.float32)
