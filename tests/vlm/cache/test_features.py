"""The feature cache: exact, whole entries only, whoever writes and whatever happens to them."""

import errno
import os
import pickle
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tests.processes import forked
from zoo.backbones import TimmEncoder
from zoo.vlm.cache.features import FeatureCache, image_key, model_key, settings_of

C = 8


def features(number: int, width: int = C, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The tokens of image `number`: some 0, some many, any bits."""
    draw = torch.Generator().manual_seed(number)
    return torch.randn(number % 5, width, generator=draw).to(dtype)


def fill(cache: FeatureCache, numbers: list[int]) -> None:
    parts = [features(number, cache.width, cache.dtype) for number in numbers]
    cache.put(list(map(str, numbers)), torch.cat(parts), torch.tensor([len(part) for part in parts]))


def holds(cache: FeatureCache, numbers: list[int]) -> bool:
    """Whether it gives these images exactly, in this order."""
    found = cache.get(list(map(str, numbers)))
    parts = [features(number, cache.width, cache.dtype) for number in numbers]
    return (
        found is not None
        and same_bits(found[0], torch.cat(parts))
        and found[1].tolist() == [len(part) for part in parts]
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def shard(cache: FeatureCache, ending: str) -> Path:
    (path,) = cache.folder.glob(f"*.{ending}")
    return path


# ---------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("again", [False, True])
def test_every_bit_comes_back(dtype, again, tmp_path):
    cache = FeatureCache(tmp_path, "tower", C, dtype)
    odd = torch.tensor([[0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-7, 65504, torch.pi]]).to(dtype)
    fill(cache, [3, 1, 4])
    cache.put(["odd", "none"], odd, torch.tensor([1, 0], dtype=torch.int32))
    fill(cache, [9, 2])
    if again:
        cache.close()
        cache = FeatureCache(tmp_path, "tower", C, dtype)
    assert holds(cache, [9, 1, 2, 3, 4, 1, 1]) and len(cache) == 7
    tokens, counts = cache.get(["none", "odd", "none"])
    assert same_bits(tokens, odd) and counts.tolist() == [0, 1, 0] and counts.dtype == torch.int64


def test_what_comes_out_is_a_copy(tmp_path):
    cache = FeatureCache(tmp_path, "tower", C)
    fill(cache, [4])
    cache.get(["4"])[0].fill_(7)
    assert holds(cache, [4]) and holds(FeatureCache(tmp_path, "tower", C), [4])


def test_unknown_keys(tmp_path):
    cache = FeatureCache(tmp_path, "tower", C)
    assert cache.get(["1"]) is None and cache.missing(["1", "2"]) == [0, 1] and "1" not in cache and len(cache) == 0
    fill(cache, [1, 3])
    assert cache.missing(["2", "1", "", "3", "13"]) == [0, 2, 4] and "1" in cache and "2" not in cache
    assert cache.get(["1", "2"]) is None
    tokens, counts = cache.get([])
    assert tokens.shape == (0, C) and tokens.dtype == torch.bfloat16 and counts.shape == (0,)


def test_a_key_is_kept_once(tmp_path):
    cache = FeatureCache(tmp_path, "tower", C)
    fill(cache, [4, 3])
    size = shard(cache, "bin").stat().st_size
    cache.put(["4", "2", "2"], torch.ones(5, C).bfloat16(), torch.tensor([1, 2, 2]))
    assert holds(cache, [4, 3]) and torch.equal(cache.get(["2"])[0], torch.ones(2, C).bfloat16())
    assert shard(cache, "bin").stat().st_size == size + 2 * C * 2
    fill(cache, [4, 3])
    assert shard(cache, "bin").stat().st_size == size + 2 * C * 2 and len(cache) == 3


def test_thousands_of_keys(tmp_path):
    cache = FeatureCache(tmp_path, "tower", 1, torch.float32)
    for start in range(0, 3000, 500):
        keys = [f"image {i}" for i in range(start, start + 500)]
        cache.put(keys, torch.arange(start, start + 500.0)[:, None], torch.ones(500, dtype=torch.long))
    order = torch.randperm(3000).tolist()
    for reader in (cache, FeatureCache(tmp_path, "tower", 1, torch.float32)):
        assert reader.get([f"image {i}" for i in order])[0][:, 0].tolist() == order and len(reader) == 3000


def test_other_models_widths_and_types_lie_elsewhere(tmp_path):
    fill(FeatureCache(tmp_path, "tower", C), [1, 2, 3])
    for key, width, dtype in (
        ("tower2", C, torch.bfloat16),
        ("tower", C + 1, torch.bfloat16),
        ("tower", C, torch.float16),
    ):
        other = FeatureCache(tmp_path, key, width, dtype)
        assert len(other) == 0
        fill(other, [4])
        assert holds(other, [4])
    assert len(FeatureCache(tmp_path, "tower", C)) == 3


@pytest.mark.parametrize(
    ("keys", "tokens", "counts", "message"),
    [
        (["a"], torch.zeros(2, C), [2], r"tokens are torch.float32 \(2, 8\), this cache keeps torch.bfloat16"),
        (["a"], torch.zeros(2, C + 1).bfloat16(), [2], r"\(2, 9\)"),
        (["a"], torch.zeros(2, C).bfloat16(), [3], "sum to 3 do not fit 2 tokens"),
        (["a", "b"], torch.zeros(2, C).bfloat16(), [2], "2 keys and counts"),
        (["a", "b"], torch.zeros(2, C).bfloat16(), [3, -1], "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(keys, tokens, counts, message, tmp_path):
    cache = FeatureCache(tmp_path, "tower", C)
    with pytest.raises(ValueError, match=message):
        cache.put(keys, tokens, torch.tensor(counts))
    assert len(cache) == 0 and not list(cache.folder.iterdir())


def test_caches_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="torch.float64 are not cached. Known: float32"):
        FeatureCache(tmp_path, "tower", C, torch.float64)
    for key in ("", "../tower"):
        with pytest.raises(ValueError, match="names a folder"):
            FeatureCache(tmp_path, key, C)


# ---------------------------------------------------------------------- whatever happens


def test_a_torn_index_keeps_every_whole_record_before_the_tear(tmp_path):
    cache = FeatureCache(tmp_path, "tower", C)
    fill(cache, [1, 2, 3])
    cache.close()
    index = shard(cache, "idx")
    whole = index.read_bytes()
    for length in range(len(whole) + 1):
        index.write_bytes(whole[:length])
        torn = FeatureCache(tmp_path, "tower", C)
        kept = length // (len(whole) // 3)
        assert len(torn) == kept and (not kept or holds(torn, [1, 2, 3][:kept]))


def test_a_record_that_is_not_as_it_was_written_is_not_believed(tmp_path):
    """A machine that lost its power may leave zeros or anything."""
    cache = FeatureCache(tmp_path, "tower", C)
    fill(cache, [1, 2])
    cache.close()
    index = shard(cache, "idx")
    whole = index.read_bytes()
    for place in range(len(whole)):
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert len(FeatureCache(tmp_path, "tower", C)) == place // (len(whole) // 2)
    index.write_bytes(whole + bytes(320))
    assert len(FeatureCache(tmp_path, "tower", C)) == 2


def test_an_entry_without_all_its_numbers_is_not_there(tmp_path):
    cache = FeatureCache(tmp_path, "tower", C)
    fill(cache, [1, 2, 3])
    cache.close()
    data = shard(cache, "bin")
    whole = data.read_bytes()
    ends = [1 * C * 2, 3 * C * 2, 6 * C * 2]
    assert len(whole) == ends[-1]
    for length in range(len(whole), -1, -1):
        os.truncate(data, length)
        cut = FeatureCache(tmp_path, "tower", C)
        assert len(cut) == sum(end <= length for end in ends)
    data.unlink()
    again = FeatureCache(tmp_path, "tower", C)
    assert len(again) == 0
    fill(again, [1, 2, 3])
    assert holds(FeatureCache(tmp_path, "tower", C), [1, 2, 3])


def _write_until_killed(folder: Path) -> None:
    cache = FeatureCache(folder, "tower", 4096)
    for start in range(1, 100_000, 3):
        fill(cache, [start, start + 1, start + 2])


def test_a_killed_writer_leaves_a_usable_cache(tmp_path):
    for _ in range(3):
        writer = forked(_write_until_killed, tmp_path)
        cache = FeatureCache(tmp_path, "tower", 4096)
        before, deadline = len(cache), time.monotonic() + 20
        while len(cache) <= before + 5 and time.monotonic() < deadline:
            cache.refresh()
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        cache = FeatureCache(tmp_path, "tower", 4096)
        assert len(cache) > before + 5
        assert holds(cache, list(range(1, len(cache) + 1)))
    fill(cache, [500_004])
    assert holds(FeatureCache(tmp_path, "tower", 4096), [1, 500_004])


def _write_some(folder: Path, numbers: list[int]) -> None:
    cache = FeatureCache(folder, "tower", C)
    for number in numbers:
        fill(cache, [number])


def test_several_write_at_once(tmp_path):
    reader = FeatureCache(tmp_path, "tower", C)
    shares = [[*range(1, 40), 201], [*range(60, 20, -1), 202], [*range(2, 60, 2), 203]]  # each has one for itself
    writers = [forked(_write_some, tmp_path, share) for share in shares]
    fill(reader, [100, 4])
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(list(reader.folder.glob("*.idx"))) == 4 and len(reader) == 2
    reader.refresh()
    for cache in (reader, FeatureCache(tmp_path, "tower", C)):
        assert holds(cache, [*range(1, 61), 100, 201, 202, 203]) and len(cache) == 64


def test_forked_and_pickled_copies_write_files_of_their_own(tmp_path):
    cache = FeatureCache(tmp_path, "tower", C)
    fill(cache, [1])
    child = forked(fill, cache, [2])
    child.join()
    assert child.exitcode == 0
    fill(cache, [3])
    copy = pickle.loads(pickle.dumps(cache))
    fill(copy, [4])
    assert len(list(cache.folder.glob("*.bin"))) == 3
    cache.refresh()
    assert holds(cache, [1, 2, 3, 4])


def _fill_the_disk(folder: Path) -> None:
    """A limit on the size of files stops a write midway, as a full disk does."""
    cache = FeatureCache(folder, "tower", 1024)
    fill(cache, [1, 2])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match="6 images could not be added to the 2 in the feature cache.*intact") as caught:
        fill(cache, [3, 4, 8, 9, 13, 14])
    assert caught.value.errno == errno.EFBIG and caught.value.filename.endswith(".bin")
    assert len(cache) == 2 and holds(cache, [1, 2]) and "3" not in cache
    assert shard(cache, "bin").stat().st_size == 3 * 1024 * 2, "what was half written is given back"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    fill(cache, [3, 4])
    assert holds(cache, [1, 2, 3, 4])


def test_a_full_disk_leaves_the_cache_as_it_was(tmp_path):
    child = forked(_fill_the_disk, tmp_path)
    child.join()
    assert child.exitcode == 0
    cache = FeatureCache(tmp_path, "tower", 1024)
    assert len(cache) == 4 and holds(cache, [4, 3, 2, 1])


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path, "tower", C)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="The disk is full: free some space") as caught:
        fill(cache, [1])
    assert caught.value.errno == errno.ENOSPC and len(cache) == 0 and len(FeatureCache(tmp_path, "tower", C)) == 0


def _own_memory() -> int:
    """Bytes of this process that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_memory_does_not_grow_with_the_cache(tmp_path):
    megabyte = torch.randn(256, 1024)
    cache = FeatureCache(tmp_path, "tower", 1024, torch.float32)
    for number in range(64):
        cache.put([str(number)], megabyte, torch.tensor([256]))
    cache.close()
    before = _own_memory()
    cache = FeatureCache(tmp_path, "tower", 1024, torch.float32)
    for number in range(64):
        assert torch.equal(cache.get([str(number)])[0], megabyte)
    assert _own_memory() - before < 8 * 2**20


# ---------------------------------------------------------------------- keys


def test_an_image_is_known_by_its_bytes_and_resolution(tmp_path):
    first, second, other = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    first.write_bytes(b"the same")
    second.write_bytes(b"the same")
    other.write_bytes(b"another")
    key = image_key(first, (224, 112))
    assert key == image_key(str(second), [224, 112]) and key.endswith("@224x112")
    assert len({key, image_key(other, (224, 112)), image_key(first, (112, 224)), image_key(first, (224,))}) == 4
    first.write_bytes(b"changed!")  # as long as before
    os.utime(first, ns=(1, 1))
    assert image_key(first, (224, 112)) != key


class Config:
    def __init__(self, entries: dict[str, object] | None = None) -> None:
        self.entries = entries or {}

    def to_dict(self) -> dict[str, object]:
        return self.entries


class Tower(nn.Module):
    def __init__(self, config: dict[str, object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.config = Config(config)


def test_an_entry_that_another_version_of_transformers_adds_makes_no_other_model():
    config = AutoConfig.for_model("qwen2_5_vl", vision_config={"depth": 3}, text_config={"hidden_size": 64})
    found = settings_of(config)
    assert found["vision_config"] == {"depth": 3} and found["text_config"]["hidden_size"] == 64
    assert "text_config" not in settings_of(config, without=("text_config",)) and settings_of(None) == {}

    class Newer(type(config.vision_config)):
        def __init__(self, added: int = 7, **options: Any) -> None:
            super().__init__(**options)
            self.added = added

    newer, other = (AutoConfig.for_model("qwen2_5_vl", text_config={"hidden_size": 64}) for _ in range(2))
    newer.vision_config, other.vision_config = Newer(depth=3), Newer(added=8, depth=3)
    assert settings_of(newer) == found and settings_of(other)["vision_config"] == {"depth": 3, "added": 8}


def test_an_expert_is_known_by_its_arguments_and_its_transform_too():
    def encoder(pool: str, **transform: Any) -> TimmEncoder:
        torch.manual_seed(0)
        made = TimmEncoder("mobilenetv3_small_050", pretrained=False, pool=pool)
        made.transform = replace(made.transform, **transform)
        return made

    key = model_key(encoder("avg"))
    assert key == model_key(encoder("avg"))
    others = [encoder("max"), encoder("avg", interpolation="nearest"), encoder("avg", std=(1.0, 1.0, 1.0))]
    assert len({key, *map(model_key, others)}) == 4


def test_a_model_is_known_by_its_weights_and_configuration():
    key = model_key(Tower({"depth": 2, "transformers_version": "5.17"}))
    assert key == model_key(Tower({"transformers_version": "5.23", "depth": 2}))
    others = [Tower({"depth": 3}), Tower({"depth": 2}).bfloat16(), Tower({"depth": 2}), Tower({"depth": 2}).layers]
    with torch.no_grad():
        others[2].layers[0].bias[3] += 1e-7
    assert len({key, *map(model_key, others)}) == 5
    tower = Tower({"depth": 2})
    tower.layers(torch.randn(3, 4))  # BatchNorm has seen a batch
    assert model_key(tower) != key
