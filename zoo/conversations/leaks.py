"""Leaks from training into tests: no identity and no image may be in conversations of both."""

from collections.abc import Sequence

import numpy as np

from zoo.conversations.manifest import Conversations

_HELD_OUT = ("val", "test")


def refuse_shared_identities(collections: Sequence[Conversations]) -> None:
    """Refuse conversations that are trained on and tested on with the same identities or images.

    Args:
        collections: of any categories and folders, as they are used together.

    Raises:
        ValueError: an identity, or the same part of an image file, is in training and held out elsewhere.
    """
    trained = [_shown(conversations, "train") for conversations in collections]
    tested = [_shown(conversations, *_HELD_OUT) for conversations in collections]
    for what, number in (("identities", 0), ("images", 1)):
        both = set().union(*(shown[number] for shown in trained)) & set().union(*(shown[number] for shown in tested))
        if both:
            root, name = min(both)[:2]
            raise ValueError(
                f"{len(both)} {what} of the training conversations are held out in validation or test conversations, "
                f"such as {name!r} of {root}. Scores would be those of memory, not of recognition: mine all of them "
                "with one split, `python -m recipes.conversations --manifest manifest.csv` with that of an earlier "
                "run, or leave one of the manifests out."
            )


def _shown(conversations: Conversations, *splits: str) -> tuple[set[tuple], set[tuple]]:
    """Identities and parts of images of some splits, each with its folder, below which names are unique."""
    chosen = conversations.select(np.isin(conversations.column("split"), splits))
    root = chosen.root.resolve()
    identities, images = set(), set()
    for ref in chosen.refs():
        identities.add((str(root), ref.identity))
        file = root / ref.path
        images.add((str(file.parent), file.name, ref.box or ()))  # another box may well show another identity
    return identities, images
