"""Instance Zoo: encoders, heads and recipes that tell *which* one, not what kind.

>>> import zoo
>>> expert = zoo.load("pet_mobilenetv3s050.world")
>>> embedding = expert.embed(expert.transform(image)[None])  # (1, embed_dim), unit norm

Importing this package loads no torch; each name below is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.cards import Card, CardError, Score, Threshold, card, list_models, load, push, register, save
    from zoo.contracts import FusionAdapter, IdentityBatch, IdentityEncoder
    from zoo.module import Optim, ZooModule

__version__ = "0.1.0"

_HOME = {
    "Card": "zoo.cards",
    "CardError": "zoo.cards",
    "Score": "zoo.cards",
    "Threshold": "zoo.cards",
    "card": "zoo.cards",
    "list_models": "zoo.cards",
    "load": "zoo.cards",
    "push": "zoo.cards",
    "register": "zoo.cards",
    "save": "zoo.cards",
    "FusionAdapter": "zoo.contracts",
    "IdentityBatch": "zoo.contracts",
    "IdentityEncoder": "zoo.contracts",
    "Optim": "zoo.module",
    "ZooModule": "zoo.module",
}

__all__ = [
    "Card",
    "CardError",
    "FusionAdapter",
    "IdentityBatch",
    "IdentityEncoder",
    "Optim",
    "Score",
    "Threshold",
    "ZooModule",
    "card",
    "list_models",
    "load",
    "push",
    "register",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}. It offers: {', '.join(sorted(_HOME))}.")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next access is a plain lookup
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
