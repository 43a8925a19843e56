"""MatchTask: galleries as conversations, every score against a count by hand, and manifests that are refused."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from tests.vlm.rig import corrupt, galleries, rows
from tests.vlm.scripted import Scripted, batch_of, features_of, score
from zoo.conversations.manifest import SCHEMA, Conversation, Conversations, ImageRef
from zoo.data.samplers import Key
from zoo.scores import Scores
from zoo.vlm.batch import Instance
from zoo.vlm.fused import ExpertFeatures, TowerFeatures
from zoo.vlm.tasks import ImageReader, MatchTask, Skipped
from zoo.vlm.tasks.match import GallerySource, by_expert
from zoo.vlm.tasks.task import TaskDataset
from zoo.world import Objects, Pets

SPLIT = [*rows("train", 12), *rows("val", 5), *rows("test", 9)]


def conversation(
    category: str, k: int, answer: int, level: str = "tau=0.5", similarities: Sequence[float] | None = None
) -> Conversation:
    image = ImageRef("it.png", "it", None)
    likes = tuple(similarities or np.linspace(0.9, 0.1, k).tolist())
    return Conversation(image, (image,) * k, answer, category, "test", 0.5, likes, level)


def task_of(*conversations: Conversation, further: Sequence[str] = ()) -> MatchTask:
    """A task of some conversations.

    Args:
        *conversations: of any categories.
        further: categories that have none.
    """
    task = MatchTask(world={"pet": Pets()}, tau=[0.2, 0.5, 0.8])
    for category in dict.fromkeys([*(one.category for one in conversations), *further]):
        table = [
            {
                "split": one.split, "category": category, "level": one.level, "tau": one.tau, "answer": one.answer,
                "query_path": one.query.path, "query_identity": one.query.identity, "query_box": None,
                "gallery_paths": [ref.path for ref in one.gallery],
                "gallery_identities": [ref.identity for ref in one.gallery], "gallery_boxes": [None] * len(one.gallery),
                "similarities": list(one.similarities),
            }
            for one in conversations if one.category == category
        ]  # fmt: skip
        made = Conversations(Path(), pa.Table.from_pylist(table, SCHEMA), {"category": category, "skipped": {}})
        task.conversations.append(made)
    task.no_match = any(one.answer == 0 for one in conversations)
    return task


def named(scores: Scores) -> dict[str, float]:
    return {str(key): value for key, value in scores.items()}


# ---------------------------------------------------------------------- scores


def test_accuracies_by_hand():
    """K from 1 to 5, two categories and levels in one batch; also a batch that nothing is left of."""
    first = [
        conversation("pet", 3, 2, "tau=0.2"),  # right, written right
        conversation("pet", 5, 5, "tau=0.2", [0.1, 0.2, 0.3, 0.4, 0.5]),  # wrong, written right, the general one right
        conversation("object", 2, 1, "tau=0.2"),  # right, written with the wrong noun; the general one right
        conversation("pet", 1, 1, "tau=0.8"),  # right, nothing written; the general one right
    ]
    second = [conversation("pet", 4, 3, "tau=0.8"), conversation("object", 3, 3, "tau=0.8")]  # wrong, right
    batches = [
        (first, [1, 0, 0, 0], ["[Pet 2]", "It is [Pet 5].", "[Pet 1]", "no idea"]),
        ([], [], []),
        (second, [3, 2], ["[Pet 3] [Pet 3]", "[Product 1] or [Product 3]"]),
    ]
    found = named(score(task_of(*first, *second), Scripted(), batches))
    cells = [("pet", "tau=0.2"), ("object", "tau=0.2"), ("pet", "tau=0.8"), ("object", "tau=0.8")]
    shares = {"accuracy": (1 / 2, 1, 1 / 2, 1), "written": (1, 0, 1 / 2, 0), "general": (1 / 2, 1, 1 / 2, 0)}
    shares |= {"chance": ((1 / 3 + 1 / 5) / 2, 1 / 2, (1 + 1 / 4) / 2, 1 / 3)}
    expected = {name: dict(zip(cells, values, strict=True)) for name, values in shares.items()}
    for name, each in expected.items():
        for (category, level), share in each.items():
            assert found[f"{category}/{level}/{name}"] == pytest.approx(share), (name, category, level)
        pet, thing = ((each[c, "tau=0.2"] + each[c, "tau=0.8"]) / 2 for c in ("pet", "object"))
        assert found[f"pet/{name}"] == pytest.approx(pet)
        assert found[name] == pytest.approx((pet + thing) / 2)
        easy = (each["pet", "tau=0.2"] + each["object", "tau=0.2"]) / 2
        assert found[f"tau=0.2/{name}"] == pytest.approx(easy)
    assert found["conversations"] == 6 and found["unparsed"] == pytest.approx(3 / 6)
    assert not any("expert" in name for name in found), "there is none for these categories"
    assert not any("no_match" in name for name in found)


def test_empty_categories_and_levels_are_left_out():
    given = [conversation("pet", 2, 1, "tau=0.2"), conversation("object", 2, 2, "tau=0.8")]
    task = task_of(*given, further=["face"])
    assert task.groups == ["pet", "object", "face"] and task.levels == ["tau=0.2", "tau=0.8"]
    found = named(score(task, Scripted(), [(given, [0, 1], [])], writes=False))
    assert found["accuracy"] == found["tau=0.2/accuracy"] == 1
    assert not any("face" in name or "object/tau=0.2" in name for name in found)


def test_without_a_match_the_last_option_is_none():
    """It is the option after the gallery's own, however large that is beside others."""
    given = [(2, 0, 0), (5, 0, 0), (1, 1, 0), (1, 0, 1), (3, 3, 3), (5, 0, 5)]  # K, answer, chosen; 0 is none
    conversations = [conversation("pet", k, answer) for k, answer, _ in given]
    task = task_of(*conversations)
    assert [task.options(one).right for one in conversations] == [2, 5, 0, 1, 2, 5]
    assert all(task.options(one).texts[-1] == "[None]" for one in conversations)
    places = [(chosen or k + 1) - 1 for k, _, chosen in given]
    texts = ["[None]" if chosen == 0 else f"[Pet {chosen}]" for *_, chosen in given]
    assert [task.parse(text, one) for text, one in zip(texts, conversations, strict=True)] == places
    found = named(score(task, Scripted(), [(conversations, places, texts)]))
    assert found["accuracy"] == found["written"] == pytest.approx(3 / 6)
    assert found["unparsed"] == 0 and found["no_match"] == pytest.approx(4 / 6)
    assert found["general"] == pytest.approx(1 / 2), "it never answers none, and is asked where it need not"
    assert found["chance"] == pytest.approx(np.mean([1 / (k + 1) for k, *_ in given]))
    assert found["conversations"] == 6


def crops(category: str, owners: Sequence[str]) -> torch.Tensor:
    """(J,) which images show an instance of this category, one in each of its own."""
    return torch.tensor([place for place, name in enumerate(owners) if name == category])


def test_the_expert_alone_takes_the_most_similar_image():
    """Equation 2, of mixed categories and sizes."""
    torch.manual_seed(0)
    sizes = (("pet", 3), ("object", 5), ("pet", 1), ("object", 2), ("pet", 4))
    conversations = [conversation(category, k, 1 + k // 2) for category, k in sizes]
    owners = [c.category for c in conversations for _ in range(len(c.gallery) + 1)]
    experts, of_image = {}, {}
    for category in ("pet", "object"):
        own = crops(category, owners)
        experts[category] = ExpertFeatures(F.normalize(torch.randn(len(own), 1, 6), dim=2), own)
        of_image |= {int(image): experts[category].vectors[row, 0] for row, image in enumerate(own)}
    features = features_of(**experts)
    expected, first = [], 0
    for c in conversations:
        images = [of_image[first + place] for place in range(len(c.gallery) + 1)]
        cosines = [float(torch.cosine_similarity(image, images[-1], dim=0)) for image in images[:-1]]
        expected.append(cosines.index(max(cosines)))
        first += len(images)
    assert by_expert(batch_of(conversations), features) == expected
    model = Scripted(vector_experts=("pet", "object"))
    found = named(score(task_of(*conversations), model, [(conversations, [0] * 5, [])], features, writes=False))
    right = [c.answer - 1 == choice for c, choice in zip(conversations, expected, strict=True)]
    pets = [hit for c, hit in zip(conversations, right, strict=True) if c.category == "pet"]
    things = [hit for c, hit in zip(conversations, right, strict=True) if c.category == "object"]
    assert found["pet/expert"] == pytest.approx(np.mean(pets))
    assert found["expert"] == pytest.approx((np.mean(pets) + np.mean(things)) / 2)
    assert "written" not in found


def expert_of(*images: Sequence[Sequence[float]]) -> TowerFeatures:
    """The vectors of the pets in each image, of which some have several and some none."""
    vectors = [vector for own in images for vector in own]
    owners = [number for number, own in enumerate(images) for _ in own]
    return features_of(pet=ExpertFeatures(torch.tensor(vectors)[:, None], torch.tensor(owners)))


def test_of_several_instances_in_an_image_the_most_similar_pair_counts():
    up, right, left, near = [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.6, 0.8]
    two = conversation("pet", 2, 1)
    assert by_expert(batch_of([two]), expert_of([near], [left, up], [up])) == [1], "the second instance of the second"
    assert by_expert(batch_of([two]), expert_of([near], [left, up], [right, left])) == [1]
    assert by_expert(batch_of([two]), expert_of([near], [up], [left, right])) == [0], "the second one of the query"


def test_an_image_without_an_instance_is_similar_to_none():
    up, left = [0.0, 1.0], [-1.0, 0.0]
    three, two = conversation("pet", 3, 3), conversation("pet", 2, 2)
    features = expert_of([], [left], [up], [up], [left], [], [left])
    assert by_expert(batch_of([three, two]), features) == [2, 0], "rows of the second conversation stay its own"
    assert by_expert(batch_of([two]), expert_of([], [left], [up])) == [1], "rather than one without any"
    assert by_expert(batch_of([two]), expert_of([left], [up], [])) == [0], "of a query without any, the first"


def test_an_expert_score_needs_an_expert_for_every_category():
    both = task_of(conversation("pet", 2, 1), conversation("object", 2, 1))
    assert both.baselines(Scripted(("pet", "face"))) == ["general"]
    assert task_of(conversation("pet", 2, 1)).baselines(Scripted(("pet", "face"))) == ["general", "expert"]


def test_the_expert_alone_is_asked_where_there_is_a_match_only():
    """Galleries of one image: it is right in all of those that it can be right in."""
    conversations = [conversation("pet", 1, answer) for answer in (1, 0, 0)]
    features = features_of(pet=ExpertFeatures(torch.ones(6, 1, 4) / 2, torch.arange(6)))
    batch = [(conversations, [0, 1, 1], [])]
    found = named(score(task_of(*conversations), Scripted(("pet",)), batch, features, writes=False))
    assert found["expert"] == found["general"] == found["accuracy"] == 1
    assert found["no_match"] == pytest.approx(2 / 3)


# ---------------------------------------------------------------------- what is there


def saved(*collections: Conversations) -> list[GallerySource]:
    sources = []
    for conversations in collections:
        conversations.save(conversations.root / "manifest.parquet")
        sources.append(GallerySource(str(conversations.root / "manifest.parquet")))
    return sources


def match_task(*collections: Conversations, **options: object) -> MatchTask:
    """A task of manifests that is set up."""
    task = MatchTask(saved(*collections), **options)  # type: ignore[arg-type]
    task.setup()
    return task


def test_levels_and_categories_of_several_manifests(tmp_path):
    pets = [("test", "tau=0.5", 3, 1), ("test", "tau=0.5", 5, 2), ("test", "tau=0.2", 2, 1), ("train", "tau=0.2", 2, 1)]
    things = [("test", "tau=0.8", 4, 3)]
    task = match_task(
        galleries(tmp_path / "a", "pet", pets), galleries(tmp_path / "b", "object", things), tau=[0.5, 0.9]
    )
    assert task.groups == ["pet", "object"] and not task.no_match
    assert task.levels == ["tau=0.5", "tau=0.2", "tau=0.8"], "those that were asked for, then all others"
    assert task.rows("test").tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]] and task.size("test") == 4
    assert task.size("train") == 1 and task.size("val") == 0
    assert task.describe() == "pet 1 train, 0 val, 3 test; object 0 train, 0 val, 1 test"
    items = [task.at("test", row)[1] for row in range(4)]
    chance = named(score(task, Scripted(), [(items, [0] * 4, [])], writes=False))
    expected = {("pet", "tau=0.5"): (1 / 3 + 1 / 5) / 2, ("pet", "tau=0.2"): 1 / 2, ("object", "tau=0.8"): 1 / 4}
    for (category, level), share in expected.items():
        assert chance[f"{category}/{level}/chance"] == pytest.approx(share)


def test_a_conversation_shows_the_gallery_then_the_query_and_names_its_instances(tmp_path):
    made = galleries(tmp_path, "pet", [("train", "tau=0.5", 3, 2)])
    table = made._table.to_pylist()
    table[0]["query_box"] = [4.0, 4.0, 20.0, 20.0]
    task = match_task(Conversations(made.root, pa.Table.from_pylist(table, SCHEMA), made.meta))
    example = task.example("train", Key(0, 0), ImageReader())
    assert not isinstance(example, Skipped)
    root, one = task.at("train", 0)
    assert root == tmp_path and example.item == one and example.answer == "[Pet 2]"
    assert example.name == one.query.path
    assert example.instances == ((Instance("pet"),),) * 3 + ((Instance("pet", (4.0, 4.0, 20.0, 20.0)),),)
    assert list(example.image_names) == [f"{ref.path} (conversation 0 of pet)" for ref in (*one.gallery, one.query)]
    assert set(task.images("train")) == {
        (tmp_path / ref.path, own) for ref, own in zip((*one.gallery, one.query), example.instances, strict=True)
    }


def test_one_gallery_without_a_match_makes_none_an_option_of_all(tmp_path):
    task = match_task(galleries(tmp_path, "pet", [("test", "tau=0.5", 3, 1), ("test", "tau=0.5", 1, 0)]))
    assert task.no_match
    dataset = TaskDataset(task, "test", ImageReader())
    examples = [dataset[Key(0, row)] for row in range(2)]
    assert [example.answer for example in examples] == ["[Pet 1]", "[None]"]
    assert all("or [None]." in example.messages[0]["content"][-1]["text"] for example in examples)
    assert [len(task.options(task.at("test", row)[1]).texts) for row in range(2)] == [4, 2]


def test_skipped_conversations_name_the_image(tmp_path):
    task = match_task(galleries(tmp_path, "pet", rows("train", 2)))
    (tmp_path / task.conversations[0][0].query.path).unlink()
    item = task.example("train", Key(0, 0), ImageReader())
    assert isinstance(item, Skipped)
    assert re.search(r"_1.jpg: no such file .*\(conversation 0 of pet\)", item.reason)


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
    task = MatchTask(saved(galleries(tmp_path, "pet", SPLIT)))
    spoil(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        task.setup()


def test_galleries_mined_with_another_encoder_are_refused(tmp_path):
    made = galleries(tmp_path, "pet", SPLIT, encoder="pet_mobilenetv3s050.world")
    with pytest.raises(ValueError, match=r"mined with pet_mobilenet.*not with general_mobilenet.*tau does not mean"):
        match_task(made)
    match_task(made, encoder="pet_mobilenetv3s050.world")


def test_identities_in_training_are_in_no_test_of_any_manifest(tmp_path):
    """The same conversations once as training and once as test; and in other images, or under another root."""
    made = galleries(tmp_path, "pet", rows("train", 6))
    test = pa.Table.from_pylist([row | {"split": "test"} for row in made._table.to_pylist()], made._table.schema)

    def both(root: Path, table: pa.Table) -> MatchTask:
        made.save(tmp_path / "train.parquet")
        Conversations(root, table, made.meta).save(tmp_path / "test.parquet")
        return MatchTask([GallerySource(str(tmp_path / f"{name}.parquet")) for name in ("train", "test")])

    with pytest.raises(ValueError, match=r"identities of the training conv.*held out .*such as '.*' of .*one split"):
        both(tmp_path, test).setup()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="identities of the training conversations are held out"):
        both(tmp_path / "link", test).setup()
    names = [
        row | {"query_identity": "new", "gallery_identities": [f"new {n}" for n in range(3)]}
        for row in test.to_pylist()
    ]
    with pytest.raises(ValueError, match="images of the training conversations are held out"):
        both(tmp_path, pa.Table.from_pylist(names, test.schema)).setup()
    elsewhere = galleries(tmp_path / "b", "object", rows("test", 4))
    both(tmp_path / "b", elsewhere._table).setup()


def test_what_is_asked_for_must_be_one_thing():
    pet = {"pet": Pets(families=4)}
    for options in ({}, {"galleries": [GallerySource("a.parquet")], "world": pet, "tau": [0.5]}):
        with pytest.raises(ValueError, match="Give one of the two"):
            MatchTask(**options)
    with pytest.raises(ValueError, match="at least one level of difficulty"):
        MatchTask(world=pet)
    with pytest.raises(ValueError, match="tau is 1.5"):
        MatchTask(world=pet, tau=[1.5])


def test_settings_that_do_nothing_beside_manifests_are_named_once(tmp_path, caplog):
    made = galleries(tmp_path, "pet", SPLIT)
    with caplog.at_level(logging.INFO, logger="zoo"):
        match_task(made)
        assert "Not used" not in caplog.text
        match_task(made, k=3, tau_quantile=[0.5], eval_conversations=9).setup()
    assert caplog.text.count("Not used") == 1
    assert "settings of their own: data.k, data.tau_quantile, data.eval_conversations." in caplog.text


# ---------------------------------------------------------------------- from the procedural world


def worlds() -> dict[str, Pets | Objects]:
    return {
        "pet": Pets(families=6, members=3, views=4, size=32),
        "object": Objects(families=6, members=3, views=4, size=32),
    }


def test_galleries_of_the_world_are_mined_once(monkeypatch):
    def task(**changes: object) -> MatchTask:
        options = {"world": worlds(), "k": (2, 3), "tau_quantile": [0.0, 0.5], "eval_conversations": 6}
        return MatchTask(**(options | changes))  # type: ignore[arg-type]

    first = task()
    first.prepare()
    first.setup()
    assert first.levels == ["quantile=0", "quantile=0.5"] and first.groups == ["pet", "object"]
    sizes = np.concatenate([c.column("k") for c in first.conversations])
    assert set(sizes) == {2, 3} and first.size("test") == 24
    identities = {
        split: {ref.identity for row in c for ref in (row.query, *row.gallery) if row.split == split}
        for c in first.conversations[:1]
        for split in ("train", "val", "test")
    }
    assert not identities["train"] & identities["test"] and not identities["train"] & identities["val"]
    monkeypatch.setattr("zoo.vlm.tasks.match.make_conversations", lambda *_, **__: pytest.fail("mined again"))
    again = task()
    again.setup()
    assert [list(c) for c in again.conversations] == [list(c) for c in first.conversations]
    with pytest.raises(pytest.fail.Exception):
        task(seed=1).setup()


def test_galleries_of_the_world_without_a_match():
    task = MatchTask(world={"pet": worlds()["pet"]}, k=2, tau=[-1.0], no_match=0.5)
    task.prepare()
    task.setup()
    (conversations,) = task.conversations
    for split in ("train", "test"):
        answers = conversations.column("answer")[conversations.column("split") == split]
        assert (answers == 0).any() and (answers > 0).any()
    items = [task.at("test", row)[1] for row in range(task.size("test"))]
    assert task.no_match and {len(task.options(item).texts) for item in items} == {3}
