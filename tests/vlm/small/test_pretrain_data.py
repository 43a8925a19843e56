"""PretrainData: what cannot be kept is read, and every process gets equally many captions."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.vlm.rig import galleries, rows
from zoo.data.samplers import Key
from zoo.vlm.batch import Example
from zoo.vlm.examples import Matches, Unread
from zoo.vlm.prompts import option
from zoo.vlm.small import pretrain_data as module
from zoo.vlm.small.pretrain_data import JoinedDataset, PretrainData, Told
from zoo.world import Pets


def data_of(folder: Path, **options: object) -> PretrainData:
    """Two captions and four galleries of one set of photos, for a model that keeps features."""
    data = PretrainData({"pet": Pets()}, **{"batch_size": 4, "workers": 0, "steps_per_epoch": 3, **options})  # type: ignore[arg-type]
    data.conversations = [galleries(folder, "pet", rows("train", 4), identities=6)]
    data.__dict__["items"] = [Told(folder / f"{name}_0.jpg", "What?", ("a cat",)) for name in ("00", "01")]
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=SimpleNamespace(cache="kept", batcher=None), strategy=strategy
    )
    return data


def test_an_image_that_could_not_be_kept_is_read_and_left_out(tmp_path: Path) -> None:
    """Its header alone looks as if it were whole."""
    data = data_of(tmp_path, same=0.5, strange=0.5)
    broken = tmp_path / "00_0.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    joined = data.train_dataloader().dataset
    assert isinstance(joined, JoinedDataset) and len(joined) == 6
    keys = [Key(epoch, row) for epoch in range(3) for row in range(6)]
    assert all(isinstance(joined[key], Example) for key in keys)
    hit = {key for key in keys if key.row == 0}
    easy: Any = joined.parts[1]
    shown = {
        key: [*easy.draw(Key(key.epoch, key.row - 2))[0], *easy.draw(Key(key.epoch, key.row - 2))[1]]
        for key in keys
        if key.row > 1
    }
    hit |= {key for key, paths in shown.items() if broken in paths}
    data.unkept.add(broken)
    found = {key for key in keys if isinstance(joined[key], Unread)}
    assert found == hit and {key.row for key in found} - {0}, "galleries, too"
    assert "00_0.jpg" in joined[Key(0, 0)].reason  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("told", "processes", "expected"), [(0.15, 1, 10), (0.15, 4, 8), (0.01, 4, 4), (0.0, 4, 0), (1.0, 4, 64)]
)
def test_captions_are_shared_evenly(
    told: float, processes: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "world_size", lambda: processes)
    loader = data_of(tmp_path, told=told, batch_size=64).train_dataloader()
    drawn = list(loader.sampler)
    captions = sum(key.row < 2 for key in drawn[: 64 // processes]) if expected else 0
    assert captions * processes == expected and len(drawn) == 3 * 64 // processes


def test_every_query_is_of_the_instance_that_it_is_said_to_be(tmp_path: Path) -> None:
    data = data_of(tmp_path, queries=3, same=0.4, strange=0.5)
    # Two images of each of six pets; the name of a file is that of its pet and its number.
    conversations = galleries(tmp_path, "pet", rows("train", 40), identities=6)
    data.conversations = [conversations]
    easy: Any = data.train_dataloader().dataset.parts[1]  # type: ignore[attr-defined]
    drawn = [easy.draw(Key(epoch, row)) for epoch in range(4) for row in range(40)]
    assert drawn == [easy.draw(Key(epoch, row)) for epoch in range(4) for row in range(40)], "by the key alone"
    instance = {
        path: ref.identity for c in conversations for ref in (c.query, *c.gallery) for path in [tmp_path / ref.path]
    }
    same = places = 0
    for gallery, queries, answers, _ in drawn:
        assert len({instance[path] for path in gallery}) == len(gallery), "no instance twice"
        assert len(queries) == len(answers) == 3
        for query, answer in zip(queries, answers, strict=True):
            assert instance[query] == instance[gallery[answer - 1]]
            same += query == gallery[answer - 1]
            places += answer == 1
    assert 0.4 <= same / (3 * len(drawn)) < 0.8  # some instances have no other query
    assert places / (3 * len(drawn)) == pytest.approx(1 / len(drawn[0][0]), abs=0.1)
    example = easy[Key(0, 0)]
    said = [message["content"] for message in example.messages if message["role"] == "assistant"]
    assert [*said, example.answer] == [option("pet", answer) for answer in drawn[0][2]]
    gallery, queries, answers, _ = drawn[0]
    assert (
        example.source == Matches(answers, tuple(map(str, (*gallery, *queries))))
        and len(example.keys) == len(gallery) + 3
    )
    (tmp_path / Path(gallery[0]).name).unlink()
    skipped = [easy[Key(0, row)] for row in range(40)]
    reasons = [item.reason for item in skipped if isinstance(item, Unread)]
    assert len({*reasons}) == len(reasons) > 1 and all(gallery[0].name in reason for reason in reasons)


def test_a_gallery_without_a_query_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data.queries is 0"):
        data_of(tmp_path, queries=0)
