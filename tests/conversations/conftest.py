from pathlib import Path

import pytest

from zoo.conversations.manifest import Conversations
from zoo.conversations.pipeline import make_conversations
from zoo.conversations.rule import GalleryRule
from zoo.data.index import IdentityIndex
from zoo.data.readers import read_with

ENCODER = "general_mobilenetv3s050.world"
RULES = [GalleryRule(k=(2, 3), tau=None, tau_quantile=0.2), GalleryRule(k=2, tau=0.3, no_match=0.5)]


def index_of(root: Path) -> IdentityIndex:
    return read_with("folder", root)


def made_of(root: Path, **options) -> Conversations:
    return make_conversations(index_of(root), ENCODER, RULES, "pet", workers=0, progress=False, **options)


@pytest.fixture(scope="session")
def made(photos):
    """Conversations over the photos, not to be changed."""
    return made_of(photos)
