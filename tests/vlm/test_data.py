"""ConversationData: which conversations there are, and when a run ends since too few of them can be used."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from lightning.pytorch.trainer.states import TrainerFn

from tests.vlm.rig import attached, corrupt, data_of, galleries, rows, scores_of, stage, trainer
from zoo.conversations.manifest import Conversations
from zoo.data.samplers import Key
from zoo.vlm.data import ConversationData, GallerySource
from zoo.vlm.examples import ConversationDataset
from zoo.world import Objects, Pets

SPLIT = [*rows("train", 12), *rows("val", 5), *rows("test", 9)]


# ---------------------------------------------------------------------- what is there


def test_levels_categories_and_chance_of_several_manifests(tmp_path):
    pets = [("test", "tau=0.5", 3, 1), ("test", "tau=0.5", 5, 2), ("test", "tau=0.2", 2, 1), ("train", "tau=0.2", 2, 1)]
    things = [("test", "tau=0.8", 4, 3)]
    data = data_of(galleries(tmp_path / "a", "pet", pets), galleries(tmp_path / "b", "object", things), tau=[0.5, 0.9])
    data.setup("test")
    assert data.categories == ["pet", "object"] and not data.no_match
    assert data.levels == ["tau=0.5", "tau=0.2", "tau=0.8"], "those that were asked for, then all others"
    expected = {("pet", "tau=0.5"): (1 / 3 + 1 / 5) / 2, ("pet", "tau=0.2"): 1 / 2, ("object", "tau=0.8"): 1 / 4}
    assert data.chance("test") == pytest.approx(expected)
    assert data.chance("train") == {("pet", "tau=0.2"): 1 / 2} and not data.validates
    assert data.rows("test").tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert data.describe() == "pet 1 train, 0 val, 3 test; object 0 train, 0 val, 1 test"


def test_one_gallery_without_a_match_makes_none_an_option_of_all(tmp_path):
    data = data_of(galleries(tmp_path, "pet", [("test", "tau=0.5", 3, 1), ("test", "tau=0.5", 1, 0)]))
    data.setup("test")
    assert data.no_match and data.chance("test") == pytest.approx({("pet", "tau=0.5"): (1 / 4 + 1 / 2) / 2})
    model = attached(stage(), data, tmp_path)
    batch = next(iter(data.test_dataloader()))
    texts = [model.batcher.processor.tokenizer.decode(ids) for ids in batch.input_ids]
    assert all("or [None]." in text for text in texts)
    dataset = ConversationDataset(data.conversations, data.rows("test"), data.no_match)
    assert [dataset[Key(0, row)].answer for row in range(2)] == ["[Pet 1]", "[None]"]


# ---------------------------------------------------------------------- manifests that are refused


REFUSED = {
    "gone": (lambda root: (root / "03_0.jpg").unlink(), "1 missing .such as 03_0.jpg.*Restore the images"),
    "changed": (lambda root: corrupt(root / "03_0.jpg"), "1 changed .such as 03_0.jpg"),
    "no manifest": (lambda root: (root / "manifest.parquet").unlink(), "There is no file .*manifest.parquet"),
    "torn": (lambda root: corrupt(root / "manifest.parquet"), "no manifest of conversations"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_manifests_that_do_not_fit_their_images_are_refused(case, tmp_path):
    spoil, message = REFUSED[case]
    data = data_of(galleries(tmp_path, "pet", SPLIT))
    spoil(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.setup("fit")


def test_galleries_mined_with_another_encoder_are_refused(tmp_path):
    made = galleries(tmp_path, "pet", SPLIT, encoder="pet_mobilenetv3s050.world")
    with pytest.raises(ValueError, match=r"mined with pet_mobilenet.*not with general_mobilenet.*tau does not mean"):
        data_of(made).setup("fit")
    data_of(made, encoder="pet_mobilenetv3s050.world").setup("fit")


def test_identities_in_training_are_in_no_test_of_any_manifest(tmp_path):
    """The same conversations once as training and once as test; and in other images, or under another root."""
    made = galleries(tmp_path, "pet", rows("train", 6))
    test = pa.Table.from_pylist([row | {"split": "test"} for row in made._table.to_pylist()], made._table.schema)

    def both(root: Path, table: pa.Table) -> ConversationData:
        made.save(tmp_path / "train.parquet")
        Conversations(root, table, made.meta).save(tmp_path / "test.parquet")
        return ConversationData([GallerySource(str(tmp_path / f"{name}.parquet")) for name in ("train", "test")])

    with pytest.raises(ValueError, match=r"identities of the training conv.*held out .*such as '.*' of .*one split"):
        both(tmp_path, test).setup("fit")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="identities of the training conversations are held out"):
        both(tmp_path / "link", test).setup("fit")
    names = [
        row | {"query_identity": "new", "gallery_identities": [f"new {n}" for n in range(3)]}
        for row in test.to_pylist()
    ]
    with pytest.raises(ValueError, match="images of the training conversations are held out"):
        both(tmp_path, pa.Table.from_pylist(names, test.schema)).setup("fit")
    elsewhere = galleries(tmp_path / "b", "object", rows("test", 4))
    both(tmp_path / "b", elsewhere._table).setup("fit")


def test_what_is_asked_for_must_be_one_thing():
    pet = {"pet": Pets(families=4)}
    for options in ({}, {"galleries": [GallerySource("a.parquet")], "world": pet, "tau": [0.5]}):
        with pytest.raises(ValueError, match="Give one of the two"):
            ConversationData(**options)
    with pytest.raises(ValueError, match="at least one level of difficulty"):
        ConversationData(world=pet)
    with pytest.raises(ValueError, match="tau is 1.5"):
        ConversationData(world=pet, tau=[1.5])


@pytest.mark.parametrize(
    ("stage_name", "verb", "split"),
    [("fit", "train", "train"), (TrainerFn.VALIDATING, "validate", "val"), (TrainerFn.TESTING, "test", "test")],
)
def test_a_split_without_conversations_is_named(stage_name, verb, split, tmp_path):
    others = [row for row in SPLIT if row[0] != split]
    data = data_of(galleries(tmp_path, "pet", others))
    with pytest.raises(
        ValueError, match=f"no conversation to {verb} with: .* of the {split} split .*--k and mine again"
    ):
        data.setup(stage_name)


def test_before_training_it_is_said_that_nothing_can_be_tested(tmp_path, caplog):
    for name, split in (("some", SPLIT), ("none", rows("train", 4))):
        data = data_of(galleries(tmp_path / name, "pet", split))
        with caplog.at_level(logging.WARNING, logger="zoo"):
            caplog.clear()
            data.setup("fit")
        assert data.tests == (name == "some")
        assert caplog.text.count("no conversation in the test split: nothing is going to be tested") == (name == "none")


def test_too_few_identities_to_test_are_named_before_training(caplog):
    data = ConversationData(world={"pet": Pets(families=4, members=4, views=2, size=32)}, k=8, tau=[-1.0])
    data.prepare_data()
    with caplog.at_level(logging.WARNING, logger="zoo"):
        data.setup("fit")
    assert re.search(r"no pet conversation in the test split: it has \d identities, and a gallery needs 8", caplog.text)
    assert not data.tests


def test_settings_that_do_nothing_beside_manifests_are_named_once(tmp_path, caplog):
    made = galleries(tmp_path, "pet", SPLIT)
    with caplog.at_level(logging.INFO, logger="zoo"):
        data_of(made).setup("fit")
        assert "Not used" not in caplog.text
        data = data_of(made, k=3, tau_quantile=[0.5], eval_conversations=9)
        data.setup("fit")
        data.setup("test")
    assert caplog.text.count("Not used") == 1
    assert "settings of their own: data.k, data.tau_quantile, data.eval_conversations." in caplog.text


def test_a_level_without_conversations_is_named_and_the_others_are_scored(tmp_path, caplog):
    hard = [("train", "tau=0.8", 3, 1), ("val", "tau=0.8", 3, 1)]
    data = data_of(galleries(tmp_path, "pet", [*SPLIT, *hard]))
    with caplog.at_level(logging.WARNING, logger="zoo"):
        scores = scores_of(tmp_path, data)
    assert caplog.text.count("pet has no conversation at tau=0.8 in the test split") == 1
    assert caplog.text.count("has no conversation") == 1
    assert "test/pet/tau=0.5/accuracy" in scores and not any("tau=0.8" in name for name in scores)
    assert not any(np.isnan(value) for value in scores.values())


# ---------------------------------------------------------------------- images that cannot be used


def test_training_goes_on_without_a_corrupt_image(tmp_path, caplog):
    made = galleries(tmp_path, "pet", rows("train", 40), identities=40)
    losses = {}
    for cache in (False, str(tmp_path / "cache")):
        data = data_of(made, max_unreadable=0.5, batch_size=8)
        data.setup("fit")
        corrupt(tmp_path / made[0].query.path)
        losses[cache] = []
        model = stage(cache=cache)
        model.on_train_batch_end = lambda out, *_, c=cache: losses[c].append(float(out["loss"]))  # type: ignore[method-assign]
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="zoo"):
            trainer(tmp_path).fit(model, data)
        galleries(tmp_path, "pet", rows("train", 40), identities=40)
        assert len(losses[cache]) == 5 and made[0].query.path in caplog.text
    assert losses[False] == pytest.approx(losses[str(tmp_path / "cache")], abs=1e-5)


def test_too_many_unusable_conversations_end_the_run_in_words(tmp_path):
    made = galleries(tmp_path, "pet", rows("test", 40), identities=20)
    data = data_of(made, max_unreadable=0.1)
    data.setup("test")
    for identity in range(6):
        corrupt(tmp_path / f"{identity:02d}_0.jpg")
    with pytest.raises(RuntimeError, match=r"\d+ of 40 conversations have images that cannot be used .at most 10.0%"):
        scores_of(tmp_path, data)


def test_a_training_batch_of_nothing_else_ends_the_run_in_words(tmp_path):
    made = galleries(tmp_path, "pet", rows("train", 3), identities=40)
    data = data_of(made, max_unreadable=1.0, batch_size=1)
    data.setup("fit")
    corrupt(tmp_path / made[1].query.path)
    with pytest.raises(
        RuntimeError, match="None of the conversations of a training batch can be used: .*raise data.batch"
    ):
        trainer(tmp_path).fit(stage(), data)


# ---------------------------------------------------------------------- order


def test_batches_go_on_where_they_were_interrupted(tmp_path):
    data = data_of(galleries(tmp_path, "pet", rows("train", 10)), batch_size=2, steps_per_epoch=4)
    attached(stage(), data, tmp_path)

    def queries(loader: Any, epoch: int) -> list[list[str]]:
        loader.sampler.set_epoch(epoch)
        return [[c.query.path for c in batch.examples] for batch in loader]

    loader = data.train_dataloader()
    whole = [queries(loader, epoch) for epoch in range(3)]
    data.load_state_dict({"epoch": 1, "step": 3})
    resumed = data.train_dataloader()
    assert queries(resumed, 1) == whole[1][3:] and queries(resumed, 2) == whole[2]


# ---------------------------------------------------------------------- from the procedural world


def wings() -> dict[str, Any]:
    return {
        "pet": Pets(families=6, members=3, views=4, size=32),
        "object": Objects(families=6, members=3, views=4, size=32),
    }


def test_galleries_of_the_world_are_mined_once(tmp_path, monkeypatch):
    options: dict[str, Any] = {"world": wings(), "k": (2, 3), "tau_quantile": [0.0, 0.5], "eval_conversations": 6}
    first = ConversationData(**options)
    first.prepare_data()
    first.setup("fit")
    assert first.levels == ["quantile=0", "quantile=0.5"] and first.categories == ["pet", "object"]
    sizes = np.concatenate([c.column("k") for c in first.conversations])
    assert set(sizes) == {2, 3} and len(first.rows("test")) == 24
    identities = {
        split: {ref.identity for row in c for ref in (row.query, *row.gallery) if row.split == split}
        for c in first.conversations[:1]
        for split in ("train", "val", "test")
    }
    assert not identities["train"] & identities["test"] and not identities["train"] & identities["val"]
    monkeypatch.setattr("zoo.vlm.data.build", lambda *_, **__: pytest.fail("mined again"))
    again = ConversationData(**options)
    again.setup("fit")
    assert [list(c) for c in again.conversations] == [list(c) for c in first.conversations]
    with pytest.raises(pytest.fail.Exception):
        ConversationData(**{**options, "seed": 1}).setup("fit")


def test_galleries_of_the_world_without_a_match():
    data = ConversationData(world={"pet": wings()["pet"]}, k=2, tau=[-1.0], no_match=0.5)
    data.prepare_data()
    data.setup("fit")
    (conversations,) = data.conversations
    for split in ("train", "test"):
        answers = conversations.column("answer")[conversations.column("split") == split]
        assert (answers == 0).any() and (answers > 0).any()
    assert data.no_match and set(data.chance("test").values()) == {1 / 3}


def test_a_world_whose_test_identities_are_too_few_is_named():
    few = Pets(families=3, members=2, views=2, size=32)
    data = ConversationData(world={"pet": few}, k=20, tau=[-1.0])
    data.prepare_data()
    with pytest.raises(
        ValueError, match=r"no conversation to test with: .*too few above tau.*Lower data.tau, data.*data.k"
    ):
        data.setup("test")
