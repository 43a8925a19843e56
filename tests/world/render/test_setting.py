"""The setting: who is left out of a group, and subjects seen from their own frame."""

from dataclasses import replace

import numpy as np

from zoo.world import Pets
from zoo.world.render.geometry import Camera
from zoo.world.render.scenery import Light, Surroundings
from zoo.world.render.setting import Setting, Spot, _owners
from zoo.world.render.solids import trace
from zoo.world.render.texture import stream


def test_who_would_hardly_be_seen_is_left_out() -> None:
    far, near = np.full((2, 1000), np.inf, np.float32)
    far[:100], near[30:130] = 5, 3
    mostly_hidden = _owners(np.stack([far, near]))  # 30 of 100 are seen
    assert set(mostly_hidden[:30]) == {-1} and set(mostly_hidden[30:130]) == {1}
    near[30:45] = np.inf
    shown = _owners(np.stack([far, near]))  # 45 of 100 are seen
    assert set(shown[:45]) == {0} and set(shown[45:130]) == {1} and set(shown[130:]) == {-1}
    tiny = np.full(1000, np.inf, np.float32)
    tiny[:4] = 1
    assert 1 not in _owners(np.stack([far, tiny])) and set(_owners(tiny[None])) == {0, -1}


def test_a_subject_on_its_spot_is_traced_as_if_it_had_been_moved_there() -> None:
    """The camera in the subject's frame sees what the camera of the setting sees of the moved solids."""
    subject, rng = Pets().subject(1, stream(5)), stream(6)
    spot = Spot((0.3, -0.4), 0.8, 1.0)
    camera = Camera.orbit(np.zeros(3), 0.2, 0.3, 7.0, 0.1)
    camera = replace(camera, zoom=4.0, shift=(0.1, -0.1))
    light, around = Light.draw("noon", 0.0, rng), Surroundings.draw("lawn", 0.0, rng)
    own = spot.setting_of_subject(Setting(camera, "lawn", "noon", light, around, ()))
    rays = camera.rays(60)
    inside = subject.meet(own.camera, spot.to_subject(rays))
    outside = trace(spot.solids_to_setting(subject.solids), camera.origin, rays, 0.022)
    both, a, b = np.intersect1d(inside.ray, outside.ray, return_indices=True)
    assert len(both) > 0.99 * max(len(inside.ray), len(outside.ray)) > 100
    np.testing.assert_allclose(inside.depth[a], outside.depth[b], atol=0.02)
    assert np.median(np.abs(inside.depth[a] - outside.depth[b])) < 1e-3
    np.testing.assert_allclose(own.camera.rays(60), spot.to_subject(rays), atol=1e-5)
    facing = (inside.normal * own.light.direction[:, None]).sum(0)[a]
    assert np.median(np.abs(facing - (outside.normal * light.direction[:, None]).sum(0)[b])) < 1e-2
    scaled = replace(spot, scale=2.0)
    twice = scaled.to_setting(np.array([[1, 0, 1]], np.float32))
    np.testing.assert_allclose(twice, [[0.3 + 2 * np.cos(0.8), -0.4 + 2 * np.sin(0.8), 2]], atol=1e-6)
