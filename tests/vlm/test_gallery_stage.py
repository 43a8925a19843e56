"""GalleryStage: every score against a count by hand, on a model that says what it is told to."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.vlm.rig import attached, data_of, galleries, stage, trainer
from zoo.conversations.manifest import Conversation, ImageRef
from zoo.data.samplers import Key
from zoo.vlm.batch import ExpertImages, VLMBatch
from zoo.vlm.fused import Seen
from zoo.vlm.gallery_stage import GalleryStage
from zoo.vlm.small.model import small_tokenizer


def conversation(
    category: str, k: int, answer: int, level: str, similarities: list[float] | None = None
) -> Conversation:
    image = ImageRef("it.png", "it", None)
    likes = tuple(similarities or np.linspace(0.9, 0.1, k).tolist())
    return Conversation(image, (image,) * k, answer, category, "test", 0.5, likes, level)


def batch_of(conversations: list[Conversation], **experts: ExpertImages) -> VLMBatch:
    none = torch.zeros(len(conversations), 1, dtype=torch.int64)
    images = sum(len(c.gallery) + 1 for c in conversations)
    counts = torch.ones(images, dtype=torch.int64)
    return VLMBatch(none, none, none, {}, {}, counts, experts, ("",) * images, tuple(conversations))


class Told(GalleryStage):
    """Its likeliest option, its written answers and its experts' vectors are given."""

    def __init__(self, categories: list[str], levels: list[str], no_match: bool = False, experts: tuple = ()) -> None:
        super().__init__()
        self.fused = SimpleNamespace(experts=dict.fromkeys(experts), patch_tokens=False)  # type: ignore[assignment]
        self.batcher = SimpleNamespace(processor=SimpleNamespace(tokenizer=small_tokenizer(["[Pet 1] [None]"], 300)))  # type: ignore[assignment]
        data = SimpleNamespace(categories=categories, levels=levels, no_match=no_match, chance=lambda split: {})
        self._trainer = SimpleNamespace(datamodule=data, sanity_checking=False)  # type: ignore[assignment]
        self.logged: dict[str, float] = {}
        self.seen: Seen | None = None

    def see(self, batch: VLMBatch) -> Seen:
        return self.seen  # type: ignore[return-value]

    def scores(self, batch: VLMBatch, seen: Seen) -> Tensor:
        """The options of each conversation, the one that is to be taken above the others."""
        sizes = [len(c.gallery) + self.trainer.datamodule.no_match for c in batch.examples]
        out = torch.full((len(sizes), max(sizes)), -torch.inf)
        for row, (size, take) in enumerate(zip(sizes, self.takes, strict=True)):
            out[row, :size] = -5 - torch.rand(size)
            out[row, take - 1 if take else size - 1] = -1.0
        return out

    def log(self, name: str, value: Any, **options: Any) -> None:  # type: ignore[override]
        self.logged[name] = float(value)


def run(module: Told, batches: list[tuple[list[Conversation], list[int], list[str]]]) -> dict[str, float]:
    module.on_test_epoch_start()
    for conversations, takes, writes in batches:
        module.takes = takes
        if writes:
            ids = module.batcher.processor.tokenizer(writes, padding=True, return_tensors="pt")["input_ids"]
            module.fused.generate = lambda *_, ids=ids: ids
        module.test_step(batch_of(conversations), 0)
    module.on_test_epoch_end()
    return module.logged


def test_accuracies_by_hand():
    """K from 1 to 5, two categories and levels in one batch; also a batch that nothing is left of."""
    module = Told(["pet", "object"], ["tau=0.2", "tau=0.8"])
    first = [
        conversation("pet", 3, 2, "tau=0.2"),  # right, written right
        conversation("pet", 5, 5, "tau=0.2", [0.1, 0.2, 0.3, 0.4, 0.5]),  # wrong, written right, the general one right
        conversation("object", 2, 1, "tau=0.2"),  # right, written with the wrong noun; the general one right
        conversation("pet", 1, 1, "tau=0.8"),  # right, nothing written; the general one right
    ]
    second = [conversation("pet", 4, 3, "tau=0.8"), conversation("object", 3, 3, "tau=0.8")]  # wrong, right
    found = run(
        module,
        [
            (first, [2, 1, 1, 1], ["[Pet 2]", "It is [Pet 5].", "[Pet 1]", "no idea"]),
            ([], [], []),
            (second, [4, 3], ["[Pet 3] [Pet 3]", "[Product 1] or [Product 3]"]),
        ],
    )
    cells = [("pet", "tau=0.2"), ("object", "tau=0.2"), ("pet", "tau=0.8"), ("object", "tau=0.8")]
    shares = {"accuracy": (1 / 2, 1, 1 / 2, 1), "written": (1, 0, 1 / 2, 0), "general": (1 / 2, 1, 1 / 2, 0)}
    expected = {name: dict(zip(cells, values, strict=True)) for name, values in shares.items()}
    for name, each in expected.items():
        for (category, level), share in each.items():
            assert found[f"test/{category}/{level}/{name}"] == pytest.approx(share), (name, category, level)
        pet, thing = ((each[c, "tau=0.2"] + each[c, "tau=0.8"]) / 2 for c in ("pet", "object"))
        assert found[f"test/pet/{name}"] == pytest.approx(pet)
        assert found[f"test/{name}"] == pytest.approx((pet + thing) / 2)
        easy = (each["pet", "tau=0.2"] + each["object", "tau=0.2"]) / 2
        assert found[f"test/tau=0.2/{name}"] == pytest.approx(easy)
    assert found["test/conversations"] == 6 and found["test/unparsed"] == pytest.approx(3 / 6)
    assert not any("expert" in name for name in found), "there is none for these categories"


def test_a_mean_over_categories_does_not_weigh_the_larger_one_more():
    module = Told(["pet", "object"], ["tau=0.5"])
    pets = [conversation("pet", 2, 1, "tau=0.5") for _ in range(9)]
    thing = conversation("object", 2, 1, "tau=0.5")
    found = run(module, [([*pets, thing], [1] * 9 + [2], [""] * 10)])
    assert found["test/pet/accuracy"] == 1 and found["test/object/accuracy"] == 0 and found["test/accuracy"] == 0.5


def test_without_a_match_the_last_option_is_none():
    """It is the option after the gallery's own, however large that is beside others."""
    module = Told(["pet"], ["tau=0.5"], no_match=True)
    told = [(2, 0, 0), (5, 0, 0), (1, 1, 0), (1, 0, 1), (3, 3, 3), (5, 0, 5)]  # K, answer, taken
    conversations = [conversation("pet", k, answer, "tau=0.5") for k, answer, _ in told]
    takes = [take for _, _, take in told]
    texts = ["[None]" if take == 0 else f"[Pet {take}]" for take in takes]
    module.takes = takes
    batch = batch_of(conversations)
    assert module.choices(batch, module.scores(batch, None)).tolist() == takes  # type: ignore[arg-type]
    found = run(module, [(conversations, takes, texts)])
    assert found["test/accuracy"] == found["test/written"] == pytest.approx(3 / 6)
    assert found["test/unparsed"] == 0 and found["test/no_match"] == pytest.approx(4 / 6)
    assert found["test/general"] == pytest.approx(1 / 2), "it never says none, and is asked where it need not"
    assert found["test/conversations"] == 6


def test_options_are_tokenised_as_answers_are_and_padded():
    module = Told(["pet", "object"], ["tau=0.5"], no_match=True)
    tokenizer = module.batcher.processor.tokenizer
    ids = module._option_ids(batch_of([conversation("pet", 2, 1, "tau=0.5"), conversation("object", 11, 1, "tau=0.5")]))
    assert ids.shape[:2] == (2, 12)
    texts = [[tokenizer.decode(option[option >= 0]) for option in row if (option >= 0).any()] for row in ids]
    assert texts[0] == ["[Pet 1]", "[Pet 2]", "[None]"]
    assert texts[1] == [*(f"[Product {n}]" for n in range(1, 12)), "[None]"]


def test_the_expert_alone_takes_the_most_similar_image():
    """Equation 2, of mixed categories and sizes."""
    torch.manual_seed(0)
    conversations = [
        conversation(category, k, 1 + k // 2, "tau=0.5")
        for category, k in (("pet", 3), ("object", 5), ("pet", 1), ("object", 2), ("pet", 4))
    ]
    owner = [c.category for c in conversations for _ in range(len(c.gallery) + 1)]
    identities, experts, of_image = {}, {}, {}
    for category in ("pet", "object"):
        own = torch.tensor([place for place, name in enumerate(owner) if name == category])
        identities[category] = torch.nn.functional.normalize(torch.randn(len(own), 1, 6), dim=2)
        experts[category] = ExpertImages(torch.zeros(0), own)
        of_image |= {int(image): identities[category][row].sum(0) for row, image in enumerate(own)}
    seen = Seen(torch.zeros(0), torch.zeros(0), identities)
    module = Told(["pet", "object"], ["tau=0.5"], experts=("pet", "object"))
    expected, first = [], 0
    for c in conversations:
        images = [of_image[first + place] for place in range(len(c.gallery) + 1)]
        cosines = [float(torch.cosine_similarity(image, images[-1], dim=0)) for image in images[:-1]]
        expected.append(cosines.index(max(cosines)) + 1)
        first += len(images)
    batch = batch_of(conversations, **experts)
    assert module.by_expert(batch, seen).tolist() == expected
    module.writes, module.seen, module.takes = False, seen, [1] * 5
    module.on_test_epoch_start()
    module.test_step(batch, 0)
    module.on_test_epoch_end()
    right = [c.answer == choice for c, choice in zip(conversations, expected, strict=True)]
    pets = [hit for c, hit in zip(conversations, right, strict=True) if c.category == "pet"]
    things = [hit for c, hit in zip(conversations, right, strict=True) if c.category == "object"]
    assert module.logged["test/pet/expert"] == pytest.approx(np.mean(pets))
    assert module.logged["test/expert"] == pytest.approx((np.mean(pets) + np.mean(things)) / 2)
    assert "test/written" not in module.logged


def test_an_expert_score_needs_an_expert_for_every_category():
    module = Told(["pet", "object"], ["tau=0.5"], experts=("pet", "face"))
    module.on_validation_epoch_start()
    assert "expert" not in module._metrics
    module = Told(["pet"], ["tau=0.5"], experts=("pet", "face"))
    module.on_validation_epoch_start()
    assert "expert" in module._metrics and "written" not in module._metrics
    module.fused.patch_tokens = True
    module.on_validation_epoch_start()
    assert "expert" not in module._metrics, "patch tokens are not the vector of equation 2"


def test_the_expert_alone_is_asked_where_there_is_a_match_only():
    """Galleries of one image: it is right in all of those that it can be right in."""
    module = Told(["pet"], ["tau=0.5"], no_match=True, experts=("pet",))
    module.writes, module.takes = False, [1, 0, 0]
    conversations = [conversation("pet", 1, answer, "tau=0.5") for answer in (1, 0, 0)]
    module.seen = Seen(torch.zeros(0), torch.zeros(0), {"pet": torch.ones(6, 1, 4) / 2})
    batch = batch_of(conversations, pet=ExpertImages(torch.zeros(0), torch.arange(6)))
    module.on_test_epoch_start()
    module.test_step(batch, 0)
    module.on_test_epoch_end()
    assert module.logged["test/expert"] == module.logged["test/general"] == module.logged["test/accuracy"] == 1
    assert module.logged["test/no_match"] == pytest.approx(2 / 3)


def test_empty_cells_are_left_out_of_every_mean():
    module = Told(["pet", "object", "face"], ["tau=0.2", "tau=0.8"])
    told = [
        conversation("pet", 2, 1, "tau=0.2"),
        conversation("pet", 2, 2, "tau=0.8"),
        conversation("object", 2, 2, "tau=0.8"),
    ]
    found = run(module, [(told, [1, 1, 2], [""] * 3)])
    assert found["test/pet/accuracy"] == 0.5 and found["test/object/accuracy"] == 1 and found["test/accuracy"] == 0.75
    assert found["test/tau=0.2/accuracy"] == 1 and found["test/tau=0.8/accuracy"] == 0.5
    assert not any("face" in name or "object/tau=0.2" in name for name in found)
    assert not any(math.isnan(value) for value in found.values())


def test_scores_before_training_go_to_the_logger():
    """The sanity check's, which Lightning would drop."""
    module = Told(["pet"], ["tau=0.5"])
    module.trainer.sanity_checking = True  # type: ignore[misc]
    kept: list[tuple[dict[str, float], int]] = []
    module.trainer.logger = SimpleNamespace(log_metrics=lambda scores, step: kept.append((scores, step)))  # type: ignore[misc]
    module.on_validation_epoch_start()
    module.takes = [2]
    module.validation_step(batch_of([conversation("pet", 2, 2, "tau=0.5")]), 0)
    module.on_validation_epoch_end()
    ((scores, step),) = kept
    assert step == 0 and scores["val/accuracy"] == 1 and module.logged == {}


# ---------------------------------------------------------------------- a model that really answers


@pytest.fixture
def answering(tmp_path: Path) -> tuple[Any, Any]:
    split = [("test", "tau=0.5", k, answer) for k, answer in ((3, 1), (5, 0), (1, 1), (2, 2), (12, 11), (4, 3))]
    data = data_of(galleries(tmp_path, "pet", split, identities=20))
    model = attached(stage(experts={"pet": "pet_mobilenetv3s050.world"}), data, tmp_path).eval()
    return model, data


def test_scores_are_likelihoods_of_whole_answers_however_batched(answering):
    """Up to the closing bracket; by one forward of prompt and option each."""
    model, data = answering
    loader = data.test_dataloader()
    tokenizer = model.batcher.processor.tokenizer
    for adapter in model.fused.adapters.values():
        adapter.gate.data.fill_(0.5)
    with torch.no_grad():
        found = {}
        for batch in loader:
            for c, row in zip(batch.examples, model.scores(batch, model.see(batch)), strict=True):
                found[c] = row
        for row in range(len(loader.dataset)):
            example = loader.dataset[Key(0, row)]
            c = example.source
            texts = [f"[Pet {n}]" for n in range(1, len(c.gallery) + 1)] + ["[None]"]
            for place, text in enumerate(texts):
                one = model.batcher([replace(example, answer=text)])
                logits, labels = model.fused.answer_logits(one, model.see(one))
                said = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
                assert tokenizer.decode(labels[-1]) == "<|im_end|>"
                torch.testing.assert_close(found[c][place], said[:-1].sum(), rtol=1e-4, atol=1e-4)
            assert (found[c][len(texts) :] == -torch.inf).all()


def test_a_test_of_a_real_model_adds_up(answering, tmp_path):
    model, data = answering
    del model.log
    scores = trainer(tmp_path).test(model, data, verbose=False)[0]
    assert scores["test/conversations"] == 6 and scores["test/unparsed"] == 1, "random weights write no bracket"
    assert scores["test/chance"] == pytest.approx(np.mean([1 / (k + 1) for k in (3, 5, 1, 2, 12, 4)]))
    assert {"test/pet/tau=0.5/accuracy", "test/expert", "test/general", "test/written"} <= set(scores)
    hits = [int(np.argmax(c.similarities)) + 1 == c.answer for c in data.conversations[0] if c.answer]
    assert scores["test/general"] == pytest.approx(np.mean(hits))
