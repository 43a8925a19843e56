"""Keys of draws against the published generator."""

import torch

from zoo.conversations.draws import random_keys


def test_keys_are_splitmix64_and_do_not_depend_on_what_they_are_drawn_with():
    from zoo.conversations.draws import _GOLDEN, _mixed

    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # of seed 0
    assert [int(v) % 2**64 for v in _mixed(torch.arange(1, 4) * _GOLDEN)] == published
    rows, others = torch.arange(50), torch.arange(1000)
    keys = random_keys(3, "identity", rows[:, None], 1, others)
    assert keys.shape == (50, 1000) and len(keys.unique()) == 50_000 and (keys >= 0).all()
    assert keys[7, 13] == random_keys(3, "identity", torch.tensor(7), 1, torch.tensor(13))
    assert not (keys == random_keys(3, "image", rows[:, None], 1, others)).any()
    bits = torch.stack([(keys >> bit) & 1 for bit in range(63)]).double().mean((1, 2))
    assert (bits - 0.5).abs().max() < 0.012  # five standard deviations
