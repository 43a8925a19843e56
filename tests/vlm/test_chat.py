"""The assistant's texts of a chat are located in the prompt of every family's template, and learned."""

import copy
from typing import Any

import pytest
import torch
from tokenizers import normalizers

from tests.vlm.conftest import EXAMPLES, by_hugging_face, talk
from tests.vlm.tiny import picture
from zoo.vlm.batch import Example
from zoo.vlm.families import family_of
from zoo.vlm.processor import VLMProcessor


def assistant(text: str, *parts: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}, *parts] if parts else text}


CHATS = {
    "one": [*EXAMPLES[0].messages, assistant("[Pet 1]"), *talk("Query", picture(20, 44)).messages],
    "two": [
        *talk("Who?").messages,
        assistant("Rex."),
        *talk("And?").messages,
        assistant("Bella"),
        *talk("And?").messages,
    ],
    "first": [assistant("Hello!"), *talk("Who?", picture(20, 44)).messages],
    "in a row": [*talk("Who?").messages, assistant("Rex."), assistant("Or so."), *talk("And?").messages],
    "shows": [
        *talk("Who?").messages,
        assistant("This:", {"type": "image", "image": picture(21, 40)}),
        *talk("No.").messages,
    ],
    "nothing": [*talk("Who?").messages, assistant(""), *talk("No?").messages],
    "spaces": [*talk("Who?").messages, assistant(" hi \n"), *talk("No.").messages],
}


@pytest.mark.parametrize("chat", CHATS)
def test_earlier_texts_of_the_assistant_are_learned_too(made: tuple[Any, VLMProcessor], chat: str) -> None:
    """The tokens are Hugging Face's; learned are the texts, and the end of the turn where the template ends it so."""
    _, batcher = made
    tokenizer, messages = batcher.processor.tokenizer, CHATS[chat]
    number = sum(p["type"] == "image" for m in messages if not isinstance(m["content"], str) for p in m["content"])
    long = Example(messages, "[None]", chat, tuple(map(str, range(number))))
    batch, prompts = batcher([long, *EXAMPLES]), by_hugging_face(batcher, [long], "right")["input_ids"][0]
    assert torch.equal(batch.input_ids[0, : len(prompts)], prompts)
    assert torch.equal(batcher([long], for_generation=True).input_ids[0], prompts)
    learned = batch.labels[0] != -100
    assert torch.equal(batch.labels[0][learned], batch.input_ids[0][learned])
    ends = batcher.family.name != "llava"
    texts = [
        m["content"] if isinstance(m["content"], str) else m["content"][0]["text"]
        for m in messages
        if m["role"] == "assistant"
    ]
    # The end follows the image, if one is shown after the text.
    expected = "".join(text + tokenizer.eos_token * (ends and chat != "shows") for text in texts)
    found = tokenizer.decode(batch.labels[0][learned]).replace(" ", "")
    assert found == (expected + "[None]" + tokenizer.eos_token).replace(" ", "")
    alone = batcher(EXAMPLES)
    assert torch.equal(alone.labels, batch.labels[1:, : alone.labels.shape[1]])
    assert (batcher([long], for_generation=True).labels == -100).all()


def test_a_tokenizer_that_puts_something_first_does_so_once(loaded: dict[str, tuple[Any, Any]]) -> None:
    """As that of Llama does with a space."""
    model, processor = loaded["llava"]
    changed = copy.deepcopy(processor)
    changed.tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("_")
    batcher = VLMProcessor(changed, family_of(model.config), model.config)
    long = Example(CHATS["two"], "[None]", "s", ())
    batch, prompts = batcher([long]), by_hugging_face(batcher, [long], "right")["input_ids"][0]
    assert torch.equal(batch.input_ids[0, : len(prompts)], prompts)
    assert changed.tokenizer.decode(prompts).count("_") == 1
    learned = changed.tokenizer.decode(batch.labels[0][batch.labels[0] != -100])
    assert learned.replace(" ", "").startswith("Rex.Bella")


def test_a_template_that_changes_a_text_is_refused(qwen: tuple[Any, Any, Any]) -> None:
    processor, family, config = qwen
    changed = copy.deepcopy(processor)
    changed.chat_template = changed.chat_template.replace("part['text']", "part['text'] | upper")
    changed.tokenizer.chat_template = changed.chat_template
    example = Example([*talk("Which?").messages, assistant("quiet"), *talk("And?").messages], "x", "s", ())
    VLMProcessor(processor, family, config)([example])
    with pytest.raises(ValueError, match="chat template changes the assistant's texts in 's'"):
        VLMProcessor(changed, family, config)([example])
    VLMProcessor(changed, family, config)([example], for_generation=True)  # nothing is to be learned
