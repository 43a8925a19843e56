"""The question of a gallery and its answers: a gallery, a query, and one bracket, as in `[Pet 3]`.

The gallery comes first, then the query, then the question, so that a fixed gallery can be read once and kept. The
noun of a category is the one in `zoo/categories.py`. `[None]` answers that the query is not in the gallery.

Options are compared by log-likelihood: the sum of the log-probabilities of an option's tokens up to and including
`]`, without the end of turn, and not divided by their number. Their tokens are those that `VLMProcessor` gives to an
answer: the bracket tokenised by itself, without special tokens.
"""

import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from zoo.categories import find_category
from zoo.vlm.tasks.images import Blank

#: the option that none of the gallery matches; its number is 0
NONE = "[None]"


def gallery_question(
    gallery: Sequence[Image.Image | Blank], query: Image.Image | Blank, category: str, no_match: bool = False
) -> list[dict[str, Any]]:
    """Chat messages: K gallery images, each after its bracket, the query image, and which of the former it shows.

    Args:
        gallery: K images, numbered from 1.
        query: the image to be matched.
        category: expert category of all of them.
        no_match: also offer `[None]`.

    Raises:
        ValueError: an empty gallery, or an unknown category.
    """
    if not gallery:
        raise ValueError("The gallery is empty. Give one image or more.")
    content: list[dict[str, Any]] = []
    for number, image in enumerate(gallery, start=1):
        content += [_text(option(category, number)), {"type": "image", "image": image}]
    content += [_text("Query"), {"type": "image", "image": query}]
    ask = f"Which {find_category(category).noun} is the query? Answer with one bracket"
    content += [_text(f"{ask}, or {NONE}." if no_match else f"{ask}.")]
    return [{"role": "user", "content": content}]


def option(category: str, number: int) -> str:
    """`[Pet 3]` for number 3, `[None]` for 0; `Conversation.answer` is such a number.

    Raises:
        ValueError: a negative number, or an unknown category.
    """
    if number < 0:
        raise ValueError(f"An option has the number 0 for {NONE} or its place in the gallery, not {number}.")
    return f"[{find_category(category).noun.capitalize()} {number}]" if number else NONE


def options(category: str, k: int, no_match: bool = False) -> list[str]:
    """The options for a gallery of k images, in its order; `[None]` comes last."""
    return [option(category, number) for number in range(1, k + 1)] + [NONE] * no_match


def parse_choice(text: str, category: str, k: int) -> int | None:
    """The number of the option that a text names, 0 for `[None]`.

    Brackets with other words do not count. Case and spaces do not matter.

    Args:
        text: an answer of stage 1 or a caption of stage 2.
        category: expert category, whose noun is looked for.
        k: images in the gallery.

    Returns:
        None where no option is named, several different ones are, or one that the gallery does not have.
    """
    noun = r"\s+".join(map(re.escape, find_category(category).noun.split()))
    brackets = re.findall(rf"\[\s*(?:{noun}\s*([0-9]+)|none)\s*\]", text, flags=re.IGNORECASE)
    named = {number.lstrip("0") or number[:1] for number in brackets}  # "" is [None], and "0" is nobody's
    known = {"": 0} | {str(number): number for number in range(1, k + 1)}
    return known.get(*named) if len(named) == 1 else None


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
