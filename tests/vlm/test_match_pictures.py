"""Sheets show a model's choices, and attention lies on the image where the tokens come from."""

import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from fusion import AdditiveFusion, CrossAttentionFusion
from tests.vlm.tiny import FAMILIES, tiny_folder, tiny_vlm
from zoo.backbones import TimmEncoder
from zoo.contracts import FusionAdapter
from zoo.conversations.manifest import Conversation, ImageRef
from zoo.drawing import GREEN, GREY, PALE, RED, heat
from zoo.vlm import match_pictures as pictures
from zoo.vlm.batch import Example, Instance
from zoo.vlm.fused import FusedVLM
from zoo.vlm.match import MatchData, MatchStage
from zoo.vlm.match_pictures import (
    AnsweredGallery,
    AttentionMap,
    MatchPictures,
    attention_maps,
    attention_sheet,
    gallery_sheet,
    layout,
    spread,
)
from zoo.vlm.processor import VLMProcessor
from zoo.world import Pets

# ---------------------------------------------------------------------- where tokens lie


class Novelty(FusionAdapter):
    """Attends to the tokens that differ from those of the same images without a mark."""

    plain: Tensor

    def __init__(self, token_dim: int, identity_dim: int) -> None:
        super().__init__(token_dim, identity_dim)

    def update_images(
        self, tokens: Tensor, present: Tensor, identity: Tensor, mask: Tensor, return_attention: bool
    ) -> tuple[Tensor, Tensor]:
        self.seen = tokens.detach().clone()
        plain = getattr(self, "plain", torch.zeros_like(tokens))
        return tokens * 0, (tokens - plain).norm(dim=-1, keepdim=True)


def stage(family: str, fusion: object, before: bool = True) -> SimpleNamespace:
    vlm, processor = tiny_vlm(family)
    torch.manual_seed(0)
    experts = {"pet": TimmEncoder("mobilenetv3_small_050", size=32).eval()}
    fused = FusedVLM(vlm, experts, fusion, before).eval()  # type: ignore[arg-type]
    transforms = {category: encoder.transform for category, encoder in experts.items()}
    return SimpleNamespace(fused=fused, batcher=VLMProcessor(processor, fused.family, vlm.config, experts=transforms))


def found_in(module: SimpleNamespace, images: list[Image.Image]) -> dict[int, list[AttentionMap]]:
    content = [{"type": "image", "image": image} for image in images]
    keys = tuple(map(str, range(len(images))))
    instances = ((Instance("pet"),),) * len(images)
    batch = module.batcher([Example([{"role": "user", "content": content}], "x", 0, keys, instances)])
    with torch.no_grad():
        return attention_maps(module, batch, module.fused.run_towers(batch), dict(enumerate(images)))  # type: ignore[arg-type]


def hottest(found: AttentionMap) -> tuple[float, float]:
    """Row and column of the middle of the brightest pixels in the picture, as shares of its height and width."""
    page = np.asarray(heat(Image.new("L", found.image.size, 90), found.values, 240)).sum(-1, dtype=int)
    rows, columns = np.nonzero(page == page.max())
    return (rows.mean() + 0.5) / page.shape[0], (columns.mean() + 0.5) / page.shape[1]


# Images of 40 x 24 pixels are kept by the Qwens: 10 x 6 patches, 5 x 3 tokens; windows hold 2 x 2 tokens.
# The others see squares of 32 x 32: InternVL in 2 x 2 tokens, LLaVA in 4 x 4.
CELLS = [
    ("qwen2_vl", True, (24, 16), 4),
    ("qwen2_5_vl", True, (40, 24), 4),
    ("qwen2_5_vl", True, (24, 40), 4),
    ("qwen2_5_vl", False, (40, 24), 8),
    ("qwen3_vl", True, (40, 24), 4),
    ("internvl", True, (32, 32), 16),
    ("internvl", False, (32, 32), 16),
    ("llava", True, (32, 32), 8),
    ("llava", False, (32, 32), 8),
]


@pytest.mark.parametrize("family, before, size, cell", CELLS)
def test_attention_to_a_mark_lies_on_the_mark(family: str, before: bool, size: tuple[int, int], cell: int) -> None:
    """Every place is marked in turn, in the second of three images, whose sizes differ."""
    module = stage(family, Novelty, before)
    width, height = size
    grey, other = Image.new("RGB", size, (90, 90, 90)), Image.new("RGB", (32, 32), (90, 90, 90))
    found_in(module, [other, grey, other])
    adapter = module.fused.adapters["pet"]
    adapter.plain = adapter.seen
    noise = np.random.default_rng(0).integers(0, 256, (cell, cell, 3), dtype=np.uint8)
    for top in range(0, height, cell):
        for left in range(0, width, cell):
            marked = grey.copy()
            marked.paste(Image.fromarray(noise), (left, top))
            found = found_in(module, [other, marked, other])[1][0]
            assert found.values.shape == (height // cell, width // cell)
            row, column = hottest(found)
            assert top < row * height < top + cell and left < column * width < left + cell, (top, left)


def test_groups_are_laid_out_row_by_row_and_tokens_within_groups() -> None:
    expected = [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11], [12, 13, 16, 17, 20, 21], [14, 15, 18, 19, 22, 23]]
    assert layout(24, 4, (4, 6)).tolist() == expected
    assert layout(6, 1, (4, 6)).tolist() == [[0, 1, 2], [3, 4, 5]], "after the projector"


def test_a_class_token_lies_nowhere_and_what_fills_no_grid_is_not_drawn() -> None:
    assert layout(10, 1, (7, 7)).tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert layout(11, 1, (7, 7)) is None and layout(24, 6, (4, 6)) is None and layout(0, 1, (7, 7)) is None


def test_of_a_cropped_image_the_crop_is_drawn() -> None:
    """LLaVA's processor takes the square in the middle, InternVL's stretches the whole."""
    image = Image.new("RGB", (96, 32), "red")
    image.paste(Image.new("RGB", (32, 32), "blue"), (32, 0))
    seen = {family: found_in(stage(family, AdditiveFusion), [image])[0][0].image for family in ("llava", "internvl")}
    blue = {family: (np.asarray(own)[..., 2] > 128).mean() for family, own in seen.items()}
    assert seen["llava"].size == seen["internvl"].size == (32, 32)
    assert blue["llava"] == 1 and blue["internvl"] == pytest.approx(1 / 3, abs=0.04)


@pytest.mark.parametrize("fusion", [AdditiveFusion, CrossAttentionFusion])
def test_what_the_project_s_own_adapters_attend_to(fusion: type) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    found = found_in(stage("qwen2_5_vl", fusion), [Image.fromarray(noise)])[0][0]
    assert found.category == "pet" and found.gate == 0.0
    assert found.values.shape == (6, 10) and found.values.mean() == pytest.approx(1, abs=1e-5)
    assert (found.values.std() > 0.01) == (fusion is AdditiveFusion), "a single vector leaves nothing to choose from"


# ---------------------------------------------------------------------- which conversations


def test_rows_are_spread_and_every_category_is_there() -> None:
    categories = ["pet"] * 10 + ["person"] * 2 + ["face"] * 5
    parts = spread(categories, 7)
    assert [rows[0] for rows in parts] == [0, 4, 7, 10, 11, 12, 15]
    assert np.concatenate(parts).tolist() == list(range(17)), "every row has its turn where others cannot be used"
    assert [rows[0] for rows in spread(categories, 1)] == [0, 10, 12]
    assert len(spread(categories, 100)) == 17 and spread([], 8) == []


# ---------------------------------------------------------------------- sheets

BLUE = (0, 0, 255)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name in "abq":
        Image.new("RGB", (30, 20), BLUE).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    return tmp_path


def answered(root: Path, answer: int, chosen: int, gallery: str = "a b", options: int = 3) -> AnsweredGallery:
    refs = tuple(ImageRef(f"{name}.png", name, None) for name in gallery.split())
    query = ImageRef("q.png", "q", None)
    talk = Conversation(query, refs, answer, "pet", "val", 0.5, (0.6,) * len(refs), "tau=0.5")
    return AnsweredGallery(talk, root, [1 / options] * options, chosen, 1, {})


def frames(one: AnsweredGallery) -> dict[str, int]:
    """Frames of each colour, a double one counting for its share of the width."""
    page = np.asarray(gallery_sheet([one], "title"))
    whole = (112 + 12) ** 2 - 112**2
    named = {"green": GREEN, "red": RED}
    return {name: round(int((page == colour).all(-1).sum()) / whole, 2) for name, colour in named.items()}


def test_frames_show_what_is_right_and_what_was_taken(album: Path) -> None:
    hit, miss = frames(answered(album, 2, 2)), frames(answered(album, 2, 1))
    assert hit["red"] == 0 and 0.6 < hit["green"] < 0.7, "double: two thirds of the width"
    assert miss == {"green": 1, "red": 1}
    assert frames(answered(album, 0, 0)) == hit and frames(answered(album, 0, 1)) == miss == frames(
        answered(album, 1, 0)
    )
    assert frames(answered(album, 1, 1, options=2)) == hit


def test_every_option_has_its_place(album: Path) -> None:
    three, two = (gallery_sheet([answered(album, 1, 2, options=options)], "t") for options in (3, 2))
    pale = [int((np.asarray(page) == PALE).all(-1).sum()) for page in (three, two)]
    assert pale[1] < 50 < pale[0], "none of them is neither right nor taken where it is an option"
    assert (np.asarray(two) == BLUE).all(-1).sum() == 3 * 112 * 75


def test_what_cannot_be_read_is_grey(album: Path) -> None:
    page = np.asarray(gallery_sheet([answered(album, 1, 2, "broken a missing", 4)], ""))
    assert (page == GREY).all(-1).sum() >= 2 * 112**2 and (page == BLUE).all(-1).sum() == 2 * 112 * 75


def test_a_box_is_outlined_in_the_whole_image(album: Path) -> None:
    one = answered(album, 1, 2)
    query = one.conversation.query
    plain, boxed = (
        np.asarray(gallery_sheet([one._replace(conversation=one.conversation._replace(query=q))], ""))
        for q in (query, query._replace(box=(6.0, 4.0, 15.0, 10.0)))
    )
    rows, columns = np.nonzero((plain != boxed).any(-1))
    assert (rows.max() - rows.min(), columns.max() - columns.min()) == pytest.approx(
        (11 * 112 / 30, 16 * 112 / 30), abs=8
    )
    middle = (rows.max() + rows.min()) // 2, (columns.max() + columns.min()) // 2
    assert (boxed[middle] == BLUE).all() and (plain[rows, columns] == BLUE).any()


def test_attention_stands_beside_each_image(album: Path) -> None:
    one = answered(album, 2, 1)
    image = Image.new("RGB", (20, 20), BLUE)
    peak = np.array([[0.0, 0.0], [0.0, 4.0]])
    found = {0: [AttentionMap("pet", image, peak, 0.25), AttentionMap("face", image, np.ones((2, 2)), None)]}
    page = np.asarray(attention_sheet([one, one._replace(attention=found)], "title"), dtype=int)
    assert (page == BLUE).all(-1).sum() == 112**2, "conversations without an adapter are left out"
    top, left = np.argwhere((page == BLUE).all(-1)).min(0)
    peaked, even = (page[top : top + 112, x : x + 112].sum(-1) for x in (left + 140, left + 272))
    row, column = np.unravel_index(peaked.argmax(), peaked.shape)
    assert row > 56 and column > 56 and even.max() == even.min() == peaked.min()


# ---------------------------------------------------------------------- a run

WORLD = Pets(families=12, members=3, views=3, size=48)


def run(
    folder: Path,
    family: str = "qwen2_5_vl",
    cache: Path | None = None,
    callback: MatchPictures | None = None,
    fast_dev_run: bool = False,
) -> tuple[Trainer, MatchStage, MatchData]:
    torch.manual_seed(0)
    data = MatchData(
        world={"pet": WORLD},
        tau=[-1.0],
        k=(2, 3),
        no_match=0.3,
        batch_size=4,
        eval_batch_size=4,
        steps_per_epoch=1,
        workers=0,
    )
    model = MatchStage(
        tiny_folder(family),
        experts={"pet": "pet_mobilenetv3s050.world"},
        fusion=partial(AdditiveFusion),
        cache=str(cache) if cache else False,
        writes=False,
    )
    model._log_hyperparams = False
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        fast_dev_run=fast_dev_run,
        limit_val_batches=1,
        logger=TensorBoardLogger(folder, name="", version=""),
        callbacks=[callback or MatchPictures(every_n_epochs=2, conversations=3)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer, model, data


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    trainer, model, data = run(folder)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    return folder


def test_a_run_draws_before_training_at_its_end_and_in_its_test(drawn: Path) -> None:
    shown = {("val", 0), ("val", 2), ("test", 2)}
    expected = {f"{split}_{name}_{step:06d}.png" for split, step in shown for name in ("galleries", "attention")}
    assert {path.name for path in drawn.glob("pictures/*")} == expected
    events = EventAccumulator(str(drawn), size_guidance={"images": 0})
    events.Reload()
    assert {tag: len(events.Images(tag)) for tag in events.Tags()["images"]} == {
        "val/galleries": 2, "val/attention": 2, "test/galleries": 1, "test/attention": 1
    }  # fmt: skip


def test_cached_features_give_the_same_pictures(drawn: Path, tmp_path: Path) -> None:
    """Batches then hold no image at all."""
    trainer, model, data = run(tmp_path, cache=tmp_path / "features")
    trainer.fit(model, data)
    for name in ("val_galleries_000000.png", "val_attention_000000.png"):
        expected, found = (np.asarray(Image.open(at / "pictures" / name), dtype=int) for at in (drawn, tmp_path))
        assert expected.shape == found.shape
        assert (abs(expected - found) > 8).mean() < 1e-3, name


def test_a_picture_that_fails_leaves_the_run_alone(tmp_path: Path, monkeypatch, caplog) -> None:
    def fail(*given: object) -> None:
        raise ZeroDivisionError("of a picture")

    monkeypatch.setattr(pictures, "gallery_sheet", fail)
    trainer, model, data = run(tmp_path)
    with caplog.at_level(logging.WARNING, "zoo"):
        trainer.validate(model, data, verbose=False)
    assert "No pictures of the val galleries" in caplog.text and "of a picture" in caplog.text
    assert "val/accuracy" in trainer.callback_metrics and not list(tmp_path.glob("pictures/*"))


def test_conversations_that_cannot_be_used_make_room_for_others(tmp_path: Path) -> None:
    trainer, model, data = run(tmp_path)
    trainer.validate(model, data, verbose=False)
    (loader,) = trainer.val_dataloaders
    callback = MatchPictures(conversations=1)
    first = next(callback._answered(trainer, model, "val"))
    broken = first.root / first.conversation.query.path
    kept = broken.read_bytes()
    try:
        broken.write_bytes(b"")
        second = next(callback._answered(trainer, model, "val"))
    finally:
        broken.write_bytes(kept)
    used = [second.conversation.query.path, *(ref.path for ref in second.conversation.gallery)]
    assert first.conversation.query.path not in used
    assert sum(second.probabilities) == pytest.approx(1, abs=1e-5)
    assert len(second.probabilities) == len(second.conversation.gallery) + 1
    best = int(np.argmax(second.probabilities))
    assert second.chosen == (best + 1 if best < len(second.conversation.gallery) else 0)
    assert 1 <= second.by_expert <= len(second.conversation.gallery)


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("qwen2")])
def test_every_family_is_drawn(family: str, tmp_path: Path) -> None:
    trainer, model, data = run(tmp_path, family)
    trainer.validate(model, data, verbose=False)
    assert {path.name for path in tmp_path.glob("pictures/*")} == {
        "val_galleries_000000.png",
        "val_attention_000000.png",
    }


def test_zero_epochs_and_dry_runs_draw_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for options in ({"callback": MatchPictures(every_n_epochs=0)}, {"fast_dev_run": True}):
        trainer, model, data = run(tmp_path, **options)
        trainer.validate(model, data, verbose=False)
    assert not list(tmp_path.rglob("pictures"))
