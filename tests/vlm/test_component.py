"""A vision-language model as a component: one folder, read alike by the zoo and by transformers."""

import copy
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import zoo
from recipes.zoo import main
from tests.vlm.tiny import FAMILIES, tiny_vlm
from zoo.cards import CardError, Score, verify
from zoo.contracts import IdentityEncoder
from zoo.vlm.component import VisionLanguageModel, save_vlm
from zoo.vlm.loading import located
from zoo.vlm.match import MatchStage
from zoo.vlm.small.model import small_processor, small_tokenizer, small_vlm


def small(seed: int = 0) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    tokenizer = small_tokenizer(["[Pet 1] Which pet is the query?"], 300)
    return small_vlm(tokenizer, 32, 2, 32, 1, 14).eval(), small_processor(tokenizer, 56, 14)


def asked(processor: Any) -> dict[str, torch.Tensor]:
    content = [
        {"type": "image", "image": Image.linear_gradient("L").convert("RGB")},
        {"type": "text", "text": "Which?"},
    ]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    return dict(processor(text=[text], images=[content[0]["image"]], return_tensors="pt"))


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("family", ["small", *FAMILIES])
def test_the_zoo_and_transformers_load_the_same(family, tmp_path):
    network, processor = small() if family == "small" else tiny_vlm(family)
    save_vlm(network, processor, tmp_path / "it", name="it.world")
    inputs = asked(processor)
    expected = logits(network, inputs)
    loaded = zoo.load(tmp_path / "it")
    assert isinstance(loaded, VisionLanguageModel) and not loaded.training
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "it", dtype="auto").eval()
    assert torch.equal(logits(loaded, inputs), expected) and torch.equal(logits(theirs, inputs), expected)
    again = asked(AutoProcessor.from_pretrained(tmp_path / "it"))
    assert all(torch.equal(again[name], value) for name, value in inputs.items())
    ids = theirs.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(ids, network.generate(**inputs, max_new_tokens=3, do_sample=False))


def test_weights_are_kept_in_their_type_and_tied_ones_stay_tied(tmp_path):
    network, processor = small()
    network.to(torch.bfloat16)
    card = save_vlm(network, processor, tmp_path / "it", name="it.world")
    bytes_ = 2 * sum(tensor.numel() for tensor in network.state_dict().values())
    assert bytes_ < card.weights.size < bytes_ + 20_000
    loaded = zoo.load(tmp_path / "it")
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "it", dtype="auto")
    assert theirs.dtype == torch.bfloat16 and theirs.lm_head.weight is theirs.model.language_model.embed_tokens.weight
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_a_component_trains_copies_and_is_saved_again(tmp_path):
    """What is trained is what `forward` uses, what a copy has and what is saved."""
    network, processor = small()
    save_vlm(network, processor, tmp_path / "one", name="one.world")
    loaded, inputs = zoo.load(tmp_path / "one"), asked(processor)
    before = logits(loaded, inputs)
    twin = copy.deepcopy(loaded)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    after = logits(loaded, inputs)
    assert not torch.allclose(after, before) and torch.equal(logits(twin, inputs), before)
    zoo.save(loaded, tmp_path / "two", name="two.world")
    assert torch.equal(logits(zoo.load(tmp_path / "two"), inputs), after)


def test_a_card_holds_what_it_was_given(tmp_path):
    network, processor = small()
    score = Score(dataset="world", protocol="galleries", values={"accuracy": 0.5}, date="2026-01-01")
    save_vlm(
        network,
        processor,
        tmp_path / "it",
        name="it.world",
        description="A small one.",
        training_data="drawn",
        licence="Apache-2.0",
        scores=[score],
        recipe="python -m recipes.vlm_base fit",
    )
    card = zoo.card(tmp_path / "it")
    assert (card.name, card.description, card.training_data) == ("it.world", "A small one.", "drawn")
    assert card.scores[0].values == {"accuracy": 0.5} and card.recipe.endswith("vlm_base fit")
    assert card.to_dict()["class"] == "zoo.vlm.component.VisionLanguageModel"
    with pytest.raises(CardError, match="exists|overwrite"):
        save_vlm(network, processor, tmp_path / "it", name="it.world")
    save_vlm(small(1)[0], processor, tmp_path / "it", name="it.world", overwrite=True)
    assert not torch.equal(logits(zoo.load(tmp_path / "it"), asked(processor)), logits(network, asked(processor)))


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    network, processor = small()
    network.save_pretrained(tmp_path / "theirs")
    files = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    with pytest.raises(CardError, match="holds more than a component"):
        save_vlm(network, processor, tmp_path / "theirs", name="it.world", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir()) == files


def test_names_on_the_shelf_lead_to_their_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.cards.shelf.shelf", lambda: tmp_path)
    save_vlm(*small(), tmp_path / "it.world", name="it.world")
    assert located("it.world") == tmp_path / "it.world"
    assert located("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    model = MatchStage("it.world")
    model.configure_model()
    assert model.fused.family.name == "qwen2_5_vl"


def test_a_folder_is_verified_and_is_no_encoder(tmp_path, capsys):
    network, processor = small()
    save_vlm(network, processor, tmp_path / "it", name="it.world")
    assert verify(tmp_path / "it").name == "it.world" and not isinstance(zoo.load(tmp_path / "it"), IdentityEncoder)
    assert main(["verify", str(tmp_path / "it")]) == 0 and main(["show", str(tmp_path / "it")]) == 0
    printed = capsys.readouterr().out
    assert "ok" in printed and "not run" in printed and "qwen2_5_vl" in printed
    assert main(["export", str(tmp_path / "it"), "--out", str(tmp_path / "it.onnx")]) == 1
    assert "no identity encoder" in capsys.readouterr().err
    weights = tmp_path / "it/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["verify", str(tmp_path / "it")]) == 1 and "failed" in capsys.readouterr().out


def test_every_component_of_the_shelf_is_verified(capsys):
    """Whatever it is: encoders embed, others are loaded."""
    assert main(["verify"]) == 0, capsys.readouterr().out


def test_a_description_without_weights_makes_a_random_model():
    network, _ = small()
    config = network.config.to_diff_dict()
    config.pop("transformers_version", None)
    fresh = VisionLanguageModel(config)
    assert {name: t.shape for name, t in fresh.state_dict().items()} == {
        name: t.shape for name, t in network.state_dict().items()
    }
    assert fresh.init_args() == {"config": config}
