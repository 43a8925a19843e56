"""PretrainData and PretrainStage: every process gets equally many captions, and what is trained is what is saved."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.vlm.rig import galleries, rows, trainer
from zoo.data.samplers import Key
from zoo.vlm import data as module
from zoo.vlm.batch import Example
from zoo.vlm.data import JoinedDataset
from zoo.vlm.small.easy_gallery import EasyGalleryTask
from zoo.vlm.small.pretrain import PretrainData, PretrainStage
from zoo.vlm.tasks.captions import CaptionedImage, CaptionTask
from zoo.vlm.tasks.task import Skipped
from zoo.world import Pets

PETS = Pets(families=6, members=2, views=2, size=32)


@dataclass
class KeepsFeatures:
    """A model whose data need not be decoded, apart from what could not be kept."""

    batcher: Any = None
    unkept: Collection[Path] = field(default_factory=set)
    decodes: bool = False

    def keep_features(self, *splits: str) -> None: ...


def data_of(folder: Path, **options: Any) -> PretrainData:
    """Two captions and four galleries of one set of photos to train on; one caption and two galleries held out."""
    data = PretrainData({"pet": PETS}, **{"batch_size": 4, "workers": 0, "steps_per_epoch": 3, **options})
    captions, easy = data.tasks
    assert isinstance(captions, CaptionTask) and isinstance(easy, EasyGalleryTask)
    easy.conversations = [galleries(folder, "pet", [*rows("train", 4), *rows("val", 2)], identities=6)]
    for split, names in {"train": ("00", "01"), "val": ("06",), "test": ()}.items():
        captions._items[split] = [CaptionedImage(folder / f"{name}_0.jpg", "What?", ("a cat",)) for name in names]
    return data


def joined(data: PretrainData) -> JoinedDataset:
    dataset = data.train_dataloader().dataset
    assert isinstance(dataset, JoinedDataset)
    return dataset


# ---------------------------------------------------------------------- data


def test_an_image_that_could_not_be_kept_is_read_and_left_out(tmp_path: Path) -> None:
    """Its header alone looks as if it were whole."""
    data, model = data_of(tmp_path, same=0.5, strange=0.5), KeepsFeatures(unkept=(unkept := set()))
    data.connect(model)
    broken = tmp_path / "00_0.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    dataset, easy = joined(data), data.tasks[1]
    assert len(dataset) == 6 and isinstance(easy, EasyGalleryTask)
    keys = [Key(epoch, row) for epoch in range(3) for row in range(6)]
    assert all(isinstance(dataset[key], Example) for key in keys)
    hit = {key for key in keys if key.row == 0}
    for key in keys:
        if key.row > 1:
            gallery, queries, _, _ = easy.draw(Key(key.epoch, key.row - 2))
            hit |= {key} if broken in (*gallery, *queries) else set()
    unkept.add(broken)
    skipped = {key: item for key in keys for item in [dataset[key]] if isinstance(item, Skipped)}
    assert skipped.keys() == hit and {key.row for key in hit} - {0}, "galleries, too"
    assert "00_0.jpg" in skipped[Key(0, 0)].reason


@pytest.mark.parametrize(
    ("share", "processes", "expected"), [(0.15, 1, 10), (0.15, 4, 8), (0.01, 4, 4), (0.0, 4, 0), (1.0, 4, 64)]
)
def test_captions_are_shared_evenly(
    share: float, processes: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "world_size", lambda: processes)
    data = data_of(tmp_path, caption_share=share, batch_size=64)
    data.connect(KeepsFeatures())
    drawn = list(data.train_dataloader().sampler)
    captions = sum(key.row < 2 for key in drawn[: 64 // processes]) if expected else 0
    assert captions * processes == expected and len(drawn) == 3 * 64 // processes


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_none_is_refused(share: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"data.caption_share is {share}"):
        data_of(tmp_path, caption_share=share)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_features_are_kept_of_what_is_trained_on_and_of_what_is_evaluated(share: float, tmp_path: Path) -> None:
    """No caption is evaluated."""
    data = data_of(tmp_path, caption_share=share)
    captions, easy = data.tasks
    expected = {*easy.images("train", "val"), *(captions.images("train") if share else ())}
    found = data.images("train", "val")
    assert set(found) == expected and len(found) == len(expected)
    assert set(data.images("val")) == set(easy.images("val"))


def test_the_tokenizer_is_made_from_questions_answers_and_galleries(tmp_path: Path) -> None:
    texts = list(data_of(tmp_path).texts())
    assert {"What?", "a cat", "[Pet 1]", "[Pet 5]", "Query"} <= set(texts)


# ---------------------------------------------------------------------- stage


def stage_of(**options: Any) -> PretrainStage:
    sizes = {"width": 32, "layers": 3, "vision_width": 32, "vision_layers": 1, "patch": 14, "size": 56}
    return PretrainStage(**{**sizes, "vocabulary": 400, **options})


def test_everything_trains_and_what_is_saved_is_the_whole_model(tmp_path: Path) -> None:
    """Guidance is logged while it lasts, for half of the training."""
    data, stage = data_of(tmp_path / "photos"), stage_of(guidance=0.5)
    logged: list[set[str]] = []
    stage.log_dict = lambda values, **_: logged.append(set(values))  # type: ignore[method-assign, assignment]
    run = trainer(tmp_path, max_epochs=2, limit_val_batches=0)
    run.fit(stage, data)
    assert all(parameter.requires_grad for parameter in stage.parameters())
    assert logged == [{"train/attention", "train/naming"}] * 3, "of six steps"
    batch = next(iter(data.val_dataloader()[0])).to(stage.device)
    stage.save_component(tmp_path / "vlm", name="it.world", recipe="")
    kept, again = zoo.load(tmp_path / "vlm"), PretrainStage(str(tmp_path / "vlm"))
    assert zoo.card(tmp_path / "vlm").recipe == ""
    again.configure_model()
    with torch.no_grad():
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.text, **batch.vision}
        whole = kept(**inputs).logits
        for each in (stage.eval(), again.eval()):  # the one that was saved can still be used
            hidden = each.fused.hidden(batch, each.fused.image_features(batch, each.run_towers(batch)))
            found = each.fused.vlm.get_output_embeddings()(hidden)
            torch.testing.assert_close(found[batch.attention_mask > 0], whole[batch.attention_mask > 0])


def test_a_frozen_tower_is_left_as_it_is(tmp_path: Path) -> None:
    data, stage = data_of(tmp_path / "photos"), stage_of(frozen_tower=True, cache=str(tmp_path / "features"))
    trainer(tmp_path, limit_val_batches=0).fit(stage, data)
    tower = stage.fused.vlm.get_submodule(stage.fused.family.tower)
    frozen = {parameter for parameter in stage.parameters() if not parameter.requires_grad}
    assert frozen == set(tower.parameters()) and not any(part.training for part in tower.modules())


def test_a_cache_of_a_tower_that_trains_is_refused() -> None:
    with pytest.raises(ValueError, match="cache keeps features of a tower that trains. Set frozen_tower"):
        stage_of(cache=True)


def test_a_new_model_needs_texts() -> None:
    with pytest.raises(RuntimeError, match="needs texts for its tokenizer"):
        stage_of().configure_model()
