"""Runnable recipes: `python -m recipes` lists them."""

from zoo.cards.registry import check_packages

check_packages()  # before a recipe imports `experts` or `fusion`: are they ours?
