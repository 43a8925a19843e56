"""AnswerStage: the loss of answers, the likelihood of options, and tasks of another project end to end."""

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor

from tests.vlm.colours import COLOURS, NameColour, WhichColour, squares
from tests.vlm.rig import (
    EXPERTS,
    attached,
    base,
    data_in,
    data_of,
    first_batch,
    galleries,
    pets_and_objects,
    stage,
    trainer,
)
from tests.vlm.tiny import FAMILIES, picture, tiny_vlm
from zoo.data.samplers import Key
from zoo.module import Optim
from zoo.scores import ScoreName
from zoo.vlm.answer_stage import AnswerStage
from zoo.vlm.batch import Example
from zoo.vlm.data import TaskData
from zoo.vlm.families import family_of
from zoo.vlm.loading import load_vlm
from zoo.vlm.match import MatchStage
from zoo.vlm.processor import VLMProcessor
from zoo.vlm.small.model import small_tokenizer
from zoo.vlm.tasks.prompts import gallery_question, options


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pets_and_objects(tmp_path_factory.mktemp("photos"))


# ---------------------------------------------------------------------- the loss


def test_the_loss_is_that_of_the_answers_tokens(data_folder, tmp_path):
    """With gates at 0: the logits of the base model, of all tokens, and the mean by hand over those to be learned."""
    model = stage()
    batch = first_batch(model, data_in(data_folder), tmp_path)
    step = copy.deepcopy(batch)
    loss = model.training_step(step, 0)
    assert "pixel_values" not in step.vision and not any(len(crops.pixels) for crops in step.experts.values())
    plain, _ = load_vlm(base())
    text = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.text}
    with torch.no_grad():
        logits = plain(**text, **batch.vision).logits.log_softmax(-1)
    terms = []
    for row, (ids, labels) in enumerate(zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True)):
        answer = [place for place, label in enumerate(labels) if label != -100]
        written = model.batcher.processor.tokenizer.decode([ids[place] for place in answer])
        noun = {"pet": "Pet", "object": "Product"}[batch.items[row].category]
        assert written == f"[{noun} {batch.items[row].answer}]<|im_end|>"
        terms += [-float(logits[row, place - 1, ids[place]]) for place in answer]
    assert float(loss) == pytest.approx(sum(terms) / len(terms), abs=1e-5)


def test_a_loss_that_is_not_finite_names_its_queries(data_folder, tmp_path):
    model = stage()
    batch = first_batch(model, data_in(data_folder), tmp_path)
    model.fused.projector.mlp[0].weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="nan or infinite") as raised:
        model.training_step(batch, 0)
    assert all(conversation.query.path in str(raised.value) for conversation in batch.items)


# ---------------------------------------------------------------------- options and texts


def test_options_are_tokenised_by_themselves_and_padded():
    model = AnswerStage()
    tokenizer = small_tokenizer(["[Pet 1] [None]"], 300)
    model.batcher = SimpleNamespace(processor=SimpleNamespace(tokenizer=tokenizer))  # type: ignore[assignment]
    model.fused = SimpleNamespace(option_scores=lambda batch, features, ids: ids)  # type: ignore[assignment]
    given = [options("pet", 2, no_match=True), options("object", 11, no_match=True)]
    ids = model.option_scores(None, None, given)  # type: ignore[arg-type]
    assert ids.shape[:2] == (2, 12)
    texts = [[tokenizer.decode(option[option >= 0]) for option in row if (option >= 0).any()] for row in ids]
    assert texts[0] == ["[Pet 1]", "[Pet 2]", "[None]"]
    assert texts[1] == [*(f"[Product {n}]" for n in range(1, 12)), "[None]"]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_option_has_the_tokens_of_an_answer(name: str) -> None:
    """What is scored is what was learned, but for the end of turn."""
    vlm, processor = tiny_vlm(name)
    model = AnswerStage()
    model.batcher = VLMProcessor(processor, family_of(vlm.config), vlm.config)
    texts = options("pet", 12, no_match=True)
    for text, ids in zip(texts, model._ids(texts), strict=True):
        example = Example(gallery_question([picture(20, 20)], picture(20, 20), "pet"), text, "", ("a", "b"))
        labels = model.batcher([example]).labels
        assert labels[labels >= 0].tolist() == [*ids, processor.tokenizer.eos_token_id]
        assert processor.tokenizer.decode(ids) == text


def test_scores_are_likelihoods_of_whole_options_however_batched(tmp_path):
    """Up to the closing bracket; by one forward of prompt and option each."""
    split = [("test", "tau=0.5", k, answer) for k, answer in ((3, 1), (5, 0), (1, 1), (2, 2), (12, 11), (4, 3))]
    data = data_of(galleries(tmp_path, "pet", split, identities=20))
    model = attached(stage(experts={"pet": EXPERTS["pet"]}), data, tmp_path).eval()
    (task,), (loader,) = data.tasks, data.test_dataloader()
    tokenizer = model.batcher.processor.tokenizer
    for adapter in model.fused.adapters.values():
        adapter.gate.data.fill_(0.5)
    found: dict[Any, Tensor] = {}
    with torch.no_grad():
        for batch in loader:
            texts = [task.options(item).texts for item in batch.items]
            scores = model.option_scores(batch, model.run_towers(batch), texts)
            found |= dict(zip(batch.items, scores, strict=True))
        for row in range(len(loader.dataset)):
            example = loader.dataset[Key(0, row)]
            texts = [f"[Pet {n}]" for n in range(1, len(example.item.gallery) + 1)] + ["[None]"]
            for place, text in enumerate(texts):
                one = model.batcher([replace(example, answer=text)])
                logits, labels = model.fused.answer_logits(one, model.run_towers(one))
                each = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
                assert tokenizer.decode(labels[-1]) == "<|im_end|>"
                torch.testing.assert_close(found[example.item][place], each[:-1].sum(), rtol=1e-4, atol=1e-4)
            assert (found[example.item][len(texts) :] == -torch.inf).all()


def test_texts_are_the_likeliest_token_after_token(data_folder, tmp_path):
    """By hand, one forward for each token; no more of them than is asked for."""
    data = data_in(data_folder)
    model = attached(stage(), data, tmp_path).eval()
    tokenizer, head = model.batcher.processor.tokenizer, model.fused.vlm.get_output_embeddings()
    (loader,) = data.test_dataloader()
    with torch.no_grad():
        batch = next(iter(loader))
        written = model.write(batch, model.run_towers(batch), ["[Pet 1]", "[Pet"], spare=2)
        prompt = model.batcher([loader.dataset[Key(0, 0)]], for_generation=True)
        features, ids = model.run_towers(prompt), []
        while len(ids) < len(tokenizer("[Pet 1]")["input_ids"]) + 2 and tokenizer.eos_token_id not in ids:
            hidden = model.fused.hidden(prompt, model.fused.image_features(prompt, features))
            best = head(hidden[:, -1:]).argmax(-1)
            ids.append(int(best))
            prompt.input_ids = torch.cat([prompt.input_ids, best], 1)
            prompt.attention_mask = torch.cat([prompt.attention_mask, torch.ones_like(best)], 1)
            prompt.text = {name: torch.cat([part, torch.zeros_like(best)], 1) for name, part in prompt.text.items()}
    assert len(written) == 4 and written[0] == tokenizer.decode(ids, skip_special_tokens=True)


# ---------------------------------------------------------------------- what a run logs


def test_scores_before_training_go_to_the_logger(data_folder, tmp_path):
    """The sanity check's, which Lightning would drop."""
    kept: list[tuple[dict[str, float], int]] = []
    data = data_in(data_folder)
    model = attached(stage(), data, tmp_path)
    logged: dict[str, float] = {}
    model.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
    logger = SimpleNamespace(log_metrics=lambda scores, step: kept.append((scores, step)))
    model.trainer.state.stage = RunningStage.SANITY_CHECKING
    model.trainer.loggers = [logger]  # type: ignore[list-item]
    model.eval()
    with torch.no_grad():
        model.on_validation_epoch_start()
        for number, batch in enumerate(data.val_dataloader()[0]):
            model.validation_step(batch, number)
        model.on_validation_epoch_end()
    ((scores, step),) = kept
    assert step == 0 and scores["val/conversations"] == 6 and logged == {}
    assert scores["val/accuracy"] == pytest.approx(model.scores[ScoreName("accuracy")])


# ---------------------------------------------------------------------- tasks of another project


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> TaskData:
    made = squares(tmp_path_factory.mktemp("squares"), train=12, val=3, test=7)
    return TaskData([WhichColour(made), NameColour(made)], batch_size=12, eval_batch_size=4, workers=0)


def test_tasks_of_another_project_are_learned_and_scored(colours, tmp_path):
    losses: list[float] = []
    language_model = "fused.vlm.model.language_model"
    model = stage(experts=None, fusion=None, optim=Optim(lr=1e-2), unfreeze=[language_model])
    model.on_train_batch_end = lambda outputs, *_: losses.append(float(outputs["loss"]))  # type: ignore[method-assign]
    run = trainer(tmp_path, max_epochs=12, limit_val_batches=0)
    run.fit(model, colours)
    assert len(losses) == 24 and sum(losses[-4:]) < 0.5 * sum(losses[:4])
    logged = {name: value for each in run.test(model, colours, verbose=False) for name, value in each.items()}
    scores = model.scores
    assert logged == {f"test/{key}": value for key, value in scores.items()}
    assert logged["test/colour/conversations"] == logged["test/naming/conversations"] == 7
    assert scores[ScoreName("chance", source="colour")] == pytest.approx(1 / 3)
    assert {key.source for key in scores} == {"colour", "naming"}
    assert {key.group for key in scores if key.source == "colour"} == {"", "small", "large"}
    assert {key.name for key in scores if key.source == "naming"} == {
        "chrf", "chrf_commonest", "chrf_drawn", "conversations"
    }  # fmt: skip


def test_a_choice_is_the_likeliest_option(colours, tmp_path):
    """The score of another project's task, against options that are compared here."""
    model = stage(experts=None, fusion=None)
    attached(model, colours, tmp_path).eval()
    right = 0
    with torch.no_grad():
        for batch in colours.test_dataloader()[0]:
            scores = model.option_scores(batch, model.run_towers(batch), [list(COLOURS)] * len(batch.items))
            chosen = [list(COLOURS)[place] for place in scores.argmax(1)]
            right += sum(choice == item.colour for choice, item in zip(chosen, batch.items, strict=True))
    by_size = {"small": 4, "large": 3}
    found = trainer(tmp_path).test(stage(experts=None, fusion=None), colours, verbose=False)[0]
    total = sum(found[f"test/colour/{size}/accuracy"] * count for size, count in by_size.items())
    assert total == pytest.approx(right)


def test_kept_features_give_tasks_of_another_project_the_same_scores(colours, tmp_path):
    found = []
    for cache in (None, str(tmp_path / "features")):
        model = stage(experts=None, fusion=None, cache=cache)
        trainer(tmp_path).test(model, colours, verbose=False)
        found.append(model.scores)
    assert found[0] == pytest.approx(found[1])
    assert len(model.towers.tower) == 6, "two of the seven squares are the same image"


# ---------------------------------------------------------------------- what it is compared with


def test_baselines_are_the_model_as_it_was_and_where_it_started(data_folder, tmp_path):
    model = stage(writes=False)
    attached(model, data_in(data_folder), tmp_path)
    assert set(model.baselines()) == {"base model"}
    bare = model.baselines()["base model"]
    assert isinstance(bare, MatchStage) and bare.vlm_name == base() and not bare.writes
    assert bare.expert_names == {} and bare.make_adapter is None and not hasattr(bare, "fused")
    model.save_component(tmp_path / "it", name="it", recipe="")
    later = stage(init_from=str(tmp_path / "it"), vlm=None, experts=None, fusion=None)
    assert set(later.baselines()) == {"base model", str(tmp_path / "it")}
    assert later.baselines()["base model"].vlm_name == base()  # type: ignore[attr-defined]
    assert isinstance(model.peer(str(tmp_path / "it")), MatchStage)
    with pytest.raises(ValueError, match="compare_with: pet_mobilenetv3s050.world is a .*, which answers nothing"):
        model.peer("pet_mobilenetv3s050.world")
