"""Contact sheets of conversations: a row for each, the query and then its gallery, the positive framed green."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.conversations.manifest import Conversation, Conversations, ImageRef
from zoo.data.images import UnreadableImage, read_image
from zoo.drawing import GREEN, GREY, RED, framed, sheet


def contact_sheets(made: Conversations, rows: int) -> Iterator[tuple[str, Image.Image]]:
    """Split and level, and a sheet of each level of the last split that has conversations.

    Args:
        made: the conversations; those shown are spread evenly over them.
        rows: most conversations on a sheet; 0 for no sheets.
    """
    splits, levels = made.column("split"), made.column("level")
    filled = [split for split in made.meta["tau"] if (splits == split).any()]
    if not filled or not rows:
        return
    split = filled[-1]
    for level in made.meta["tau"][split]:
        places = np.flatnonzero((splits == split) & (levels == level))
        if len(places):
            chosen = places[np.linspace(0, len(places) - 1, min(rows, len(places))).astype(int)]
            yield f"{split}_{level}", contact_sheet(made.select(chosen), f"{made[0].category}, {split}, {level}")


def contact_sheet(made: Conversations, title: str) -> Image.Image:
    """All of these conversations on one sheet."""
    pictures, captions = [], []
    for conversation in made:
        pictures.append([framed(_image(made.root, conversation.query), GREY)])
        captions.append([_caption(conversation)])
        shown = zip(conversation.gallery, conversation.similarities, strict=True)
        for place, (image, similarity) in enumerate(shown, start=1):
            pictures[-1].append(framed(_image(made.root, image), GREEN if place == conversation.answer else RED))
            captions[-1].append(f"{similarity:.2f} {image.identity}")
    return sheet(pictures, captions, title)


def _caption(conversation: Conversation) -> str:
    return f"{conversation.answer or 'no match'}: {conversation.query.identity}"


def _image(root: Path, image: ImageRef) -> Image.Image:
    try:
        return read_image(root / image.path, image.box)
    except UnreadableImage:  # readable when it was embedded, gone since
        return Image.new("RGB", (112, 112), GREY)
