"""Tests load_vlm on tiny models of every family."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, BertConfig

from tests.vlm.tiny import FAMILIES, tiny_folder, tiny_vlm
from zoo.vlm.families import FAMILIES as ENTRIES
from zoo.vlm.loading import load_vlm


@pytest.fixture(params=FAMILIES)
def parts(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """Family, its model, its processor."""
    return ENTRIES[request.param], *tiny_vlm(request.param)


def test_loading(parts: tuple[Any, Any, Any]) -> None:
    family, model, _ = parts
    half, _ = load_vlm(tiny_folder(family.name), dtype="bfloat16", attention="eager")
    assert half.dtype == torch.bfloat16 and half.config._attn_implementation == "eager" and not half.training
    for (name, wanted), found in zip(model.named_parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(found, wanted.bfloat16(), msg=name)


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("no/such/folder", {}, "no folder, nor a hub id"),
        ("{tmp}", {}, "config.json is missing"),
        ("{bert}", {}, "Unknown family 'bert'. Known: qwen2_vl, qwen2_5_vl"),
        ("{odd}", {}, "no configuration that can be read"),
        ("{config}", {}, "no weights that can be loaded"),
        ("{weights}", {}, "no processor that can be loaded"),
        ("{tmp}", {"dtype": "float8"}, "Unknown dtype 'float8'. Known: float32"),
        ("{tmp}", {"attention": "magic"}, "Unknown attention 'magic'. Known: sdpa"),
    ],
)
def test_what_cannot_be_loaded(tmp_path: Any, where: str, options: dict[str, str], message: str) -> None:
    places = {name: tmp_path / name for name in ("tmp", "bert", "odd", "config", "weights")}
    for place in places.values():
        place.mkdir()
    BertConfig().save_pretrained(places["bert"])
    (places["odd"] / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    config = AutoConfig.from_pretrained(tiny_folder("llava"))
    config.save_pretrained(places["config"])
    AutoModelForImageTextToText.from_config(config).save_pretrained(places["weights"])
    with pytest.raises(ValueError, match=message):
        load_vlm(where.format(**places), **options)
