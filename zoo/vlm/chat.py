"""Chats of images and texts as a model's own template writes them, and the spans of the assistant's texts in them."""

import re
from collections.abc import Mapping, Sequence
from itertools import chain, count
from typing import Any

#: stands for a text in a chat template's frame; of characters that no text has
_MARK = "\ue000{}\ue001"

Messages = Sequence[Mapping[str, Any]]


def parts_of(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of a message's content; a plain text is one part."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def render(processor: Any, messages: Messages) -> str:
    """The prompt as text, with a placeholder for every image, up to where the next answer begins."""
    plain = [
        {"role": message["role"], "content": [_without_picture(p) for p in parts_of(message)]} for message in messages
    ]
    return processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)


def assistant_spans(processor: Any, messages: Messages, whole: str, name: str) -> list[tuple[int, int]]:
    """Start and stop of each of the assistant's texts in a prompt; with the token that ends a turn, where it follows.

    Args:
        processor: of Hugging Face.
        messages: of the chat.
        whole: what `render` makes of them.
        name: what errors call the chat.

    Raises:
        ValueError: the template changes the assistant's texts.
    """
    texts = [part["text"] for message in messages for part in parts_of(message) if _is_learned(message, part)]
    if not texts:
        return []
    frame = re.split(_MARK.format(r"\d+"), render(processor, _marked(messages)))
    for written in (texts, [text.strip() for text in texts]):  # some templates strip
        if len(frame) == len(texts) + 1 and whole == "".join(chain(*zip(frame, [*written, ""], strict=True))):
            break
    else:
        raise ValueError(
            f"The chat template changes the assistant's texts in {name}, so that they cannot be learned. "
            "Give the last answer alone, as `answer`."
        )
    end, spans, place = processor.tokenizer.eos_token, [], 0
    for before, text, after in zip(frame, written, frame[1:], strict=False):
        start = place + len(before)
        place = start + len(text)
        spans.append((start, place + len(end) * after.startswith(end)))
    return spans


def fill(
    text: str, placeholder: str, inserts: Sequence[str], spans: Sequence[tuple[int, int]]
) -> tuple[str, list[tuple[int, int]]]:
    """The text with an insert in each placeholder's place, and where its spans are now."""
    first, *rest = text.split(placeholder)
    places = [found.start() for found in re.finditer(re.escape(placeholder), text)]

    def moved(place: int) -> int:
        more = (len(insert) - len(placeholder) for insert, own in zip(inserts, places, strict=True) if own < place)
        return place + sum(more)

    filled = first + "".join(insert + piece for insert, piece in zip(inserts, rest, strict=True))
    return filled, [(moved(start), moved(stop)) for start, stop in spans]


def _is_learned(message: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and part["type"] == "text"


def _without_picture(part: Mapping[str, Any]) -> dict[str, Any]:
    """What a template needs: where an image is, not the image."""
    return {"type": "image"} if part["type"] == "image" else dict(part)


def _marked(messages: Messages) -> list[dict[str, Any]]:
    """The messages with a mark in place of each of the assistant's texts."""
    number = count()
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "text", "text": _MARK.format(next(number))} if _is_learned(message, part) else part
                for part in parts_of(message)
            ],
        }
        for message in messages
    ]
