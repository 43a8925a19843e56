"""In-context conversations: a query, a gallery of look-alikes, and which of them shows the same identity."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.conversations.leaks import refuse_shared_identities
    from zoo.conversations.manifest import Conversation, Conversations, ImageRef
    from zoo.conversations.pipeline import make_conversations
    from zoo.conversations.rule import GalleryRule

_MODULES = {
    "Conversation": "zoo.conversations.manifest",
    "Conversations": "zoo.conversations.manifest",
    "GalleryRule": "zoo.conversations.rule",
    "ImageRef": "zoo.conversations.manifest",
    "make_conversations": "zoo.conversations.pipeline",
    "refuse_shared_identities": "zoo.conversations.leaks",
}

__all__ = [
    "Conversation",
    "Conversations",
    "GalleryRule",
    "ImageRef",
    "make_conversations",
    "refuse_shared_identities",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Known: {', '.join(__all__)}.")
    return getattr(import_module(_MODULES[name]), name)
