"""Runnable recipes: `python -m recipes` lists them."""

from zoo.cards.registry import check_rooms

check_rooms()  # before a recipe imports `experts` or `fusion`: are they ours?
