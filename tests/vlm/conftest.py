"""What the tests of the processor and of chats share: models of all families, and examples for them."""

from typing import Any

import pytest
import torch

from tests.vlm.tiny import FAMILIES, picture, tiny_vlm
from zoo.vlm.batch import Example
from zoo.vlm.families import family_of
from zoo.vlm.processor import VLMProcessor


@pytest.fixture(scope="module")
def loaded() -> dict[str, tuple[Any, Any]]:
    return {name: tiny_vlm(name) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def made(request: pytest.FixtureRequest, loaded: dict[str, tuple[Any, Any]]) -> tuple[Any, VLMProcessor]:
    """A model and the processor that makes its batches."""
    model, processor = loaded[request.param]
    return model, VLMProcessor(processor, family_of(model.config), model.config)


@pytest.fixture
def qwen(loaded: dict[str, tuple[Any, Any]]) -> tuple[Any, Any, Any]:
    model, processor = loaded["qwen2_5_vl"]
    return processor, family_of(model.config), model.config


def talk(*parts: Any, answer: str = "[Pet 2]", item: Any = "talk", **more: Any) -> Example:
    """One user message of texts and images."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    number = sum(not isinstance(part, str) for part in parts)
    keys = more.pop("keys", tuple(f"{item}/{n}.png" for n in range(number)))
    return Example([{"role": "user", "content": content}], answer, item, keys, **more)


EXAMPLES = [
    talk("[Pet 1]", picture(50, 20), "[Pet 2]", picture(33, 37), "Query", picture(20, 44), "Which?", item="three"),
    talk("Query", picture(16, 16), "Which one of them is the query?", answer="[None]", item="one"),
    talk("Write something.", answer="Something.", item="blind"),
    talk("Both", picture(21, 40), picture(40, 21), item="two"),
]


def by_hugging_face(batcher: VLMProcessor, examples: list[Example], side: str) -> dict[str, torch.Tensor]:
    texts = [
        batcher.processor.apply_chat_template(list(e.messages), tokenize=False, add_generation_prompt=True)
        for e in examples
    ]
    parts = [p for e in examples for m in e.messages if not isinstance(m["content"], str) for p in m["content"]]
    images = [part["image"] for part in parts if part["type"] == "image"] or None
    return batcher.processor(
        text=texts, images=images, return_tensors="pt", padding=True, padding_side=side, images_kwargs=batcher.options
    )
