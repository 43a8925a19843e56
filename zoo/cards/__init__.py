"""Cards: what a component is, where it lies, and how it is verified, loaded and saved. Needs no torch to read one."""

from zoo.cards.cardfile import Card, CardError, Score, Threshold, WeightFile
from zoo.cards.registry import check_packages, register, resolve
from zoo.cards.shelf import card, list_models
from zoo.cards.store import build, fill, load, load_tensors, push, save, verify

__all__ = [
    "Card",
    "CardError",
    "Score",
    "Threshold",
    "WeightFile",
    "build",
    "card",
    "check_packages",
    "fill",
    "list_models",
    "load",
    "load_tensors",
    "push",
    "register",
    "resolve",
    "save",
    "verify",
]
