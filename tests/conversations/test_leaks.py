"""Conversations that would test what was trained on are refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from zoo.conversations.leaks import refuse_shared_identities
from zoo.conversations.manifest import Conversations


def renamed(conversations: Conversations, split: str, identity: str | None = None) -> Conversations:
    """All of another split, and of identities of other names if one is given."""
    table = conversations._table
    rows = table.to_pylist()
    for row in rows:
        row["split"] = split
        if identity is not None:
            row["query_identity"] = identity
            row["gallery_identities"] = [f"{identity} {place}" for place in range(len(row["gallery_identities"]))]
    return Conversations(
        conversations.root, pa.Table.from_pylist(rows, conversations._table.schema), conversations.meta
    )


@pytest.fixture
def train(made):
    return made.select(made.column("split") == "train")


def test_splits_of_one_manifest_share_nothing(made):
    refuse_shared_identities([made])
    refuse_shared_identities([made, made])


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_identity_of_training_is_not_held_out_elsewhere(train, split):
    with pytest.raises(ValueError, match=r"identities of the training conversations are held out .*such as 'id_"):
        refuse_shared_identities([train, renamed(train, split)])


def test_an_image_of_training_is_not_held_out_under_another_name(train):
    with pytest.raises(ValueError, match="images of the training conversations are held out"):
        refuse_shared_identities([train, renamed(train, "test", "new")])


def test_the_same_names_in_another_folder_are_other_identities(train):
    test = renamed(train, "test")
    refuse_shared_identities([train, Conversations(Path("/elsewhere"), test._table, test.meta)])
    refuse_shared_identities([train.select(np.zeros(0, dtype=int)), test])
