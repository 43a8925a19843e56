"""Conversations as they are made: they say what is in the images, and name what was left out."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist

import zoo
from tests.conftest import write_identities
from tests.conversations.conftest import ENCODER, RULES, index_of, made_of
from zoo.conversations.manifest import Conversations
from zoo.conversations.mining import NO_POSITIVE, TOO_FEW
from zoo.conversations.pipeline import make_conversations
from zoo.conversations.rule import GalleryRule


def test_a_conversation_says_what_is_in_its_images(made, photos):
    index = index_of(photos)
    split_of = dict(zip(index.paths.tolist(), index.splits.tolist(), strict=True))
    seen = set()
    for conversation in made:
        images = (conversation.query, *conversation.gallery)
        assert {split_of[image.path] for image in images} == {conversation.split}
        assert all(image.identity == image.path.split("/")[0] and image.box is None for image in images)
        assert len({image.identity for image in conversation.gallery}) == len(conversation.gallery)
        same = [place for place, image in enumerate(conversation.gallery, 1) if image.identity == images[0].identity]
        assert same == ([conversation.answer] if conversation.answer else [])
        assert len(conversation.similarities) == len(conversation.gallery)
        wrong = [v for place, v in enumerate(conversation.similarities, 1) if place != conversation.answer]
        assert min(wrong, default=1) > conversation.tau
        assert (conversation.category, conversation.level in ("tau=0.3", "quantile=0.2")) == ("pet", True)
        seen.add((conversation.split, conversation.level, bool(conversation.answer)))
    assert {("train", "quantile=0.2", True), ("test", "tau=0.3", False), ("test", "tau=0.3", True)} <= seen


def test_similarities_are_those_of_the_encoder(made, photos):
    index, encoder = index_of(photos), zoo.load(ENCODER)
    row_of = {path: row for row, path in enumerate(index.paths.tolist())}
    for conversation in (made[0], made[-1]):
        images = [index.image(row_of[i.path]) for i in (conversation.query, *conversation.gallery)]
        vectors = encoder.embed(torch.stack([encoder.transform(image) for image in images]))
        assert torch.allclose(vectors[1:] @ vectors[0], torch.tensor(conversation.similarities), atol=1e-4)


def test_meta_says_what_it_was_made_from(made, photos):
    meta, index = made.meta, index_of(photos)
    assert meta["encoder"] == {"name": ENCODER, "sha256": zoo.card(ENCODER).weights.sha256}
    assert [
        GalleryRule(**(r | {"k": tuple(r["k"]) if isinstance(r["k"], list) else r["k"]})) for r in meta["rules"]
    ] == RULES
    split, level, tau = made.column("split"), made.column("level"), made.column("tau")
    for name in ("train", "val", "test"):
        for rule in RULES:
            here = (split == name) & (level == rule.level)
            skipped = meta["skipped"][name][rule.level]
            assert here.sum() + sum(skipped.values()) == len(index.rows(name)) and skipped[NO_POSITIVE] == 0
            assert (tau[here] == meta["tau"][name][rule.level]).all()
        assert meta["tau"][name]["quantile=0.2"] == meta["quantiles"][name]["0.2"]
    assert meta["skipped"]["val"]["tau=0.3"][TOO_FEW] > 0, "no two others among two identities"
    used = sorted({image.path for c in made for image in (c.query, *c.gallery)})
    lines = [f"{path} {hashlib.sha256((photos / path).read_bytes()).hexdigest()}" for path in used]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert meta["images"] == {"count": len(used), "sha256": digest}


def test_boxes_travel_along(photos, tmp_path):
    index = index_of(photos)
    boxes = np.tile(np.array([2.0, 3.0, 20.0, 21.5], dtype=np.float32), (len(index), 1))
    boxes[::2] = -1
    made = make_conversations(
        replace(index, boxes=boxes), ENCODER, RULES[:1], "pet", ["train"], 10, workers=0, progress=False
    )
    made.save(tmp_path / "c.jsonl")
    images = [i for c in Conversations.load(tmp_path / "c.jsonl", photos) for i in (c.query, *c.gallery)]
    row_of = {path: row for row, path in enumerate(index.paths.tolist())}
    assert {image.box for image in images} == {None, (2.0, 3.0, 20.0, 21.5)}
    assert all((image.box is None) == (row_of[image.path] % 2 == 0) for image in images)


def test_unreadable_images_are_named_and_never_used(tmp_path):
    root = write_identities(tmp_path / "photos", identities=8)
    (root / "id_001/0.png").write_bytes(b"")
    (root / "id_002/1.png").write_bytes(b"no image")
    made = made_of(root)
    assert sorted(made.meta["unreadable"]) == ["id_001/0.png: empty file", "id_002/1.png: not an image"]
    assert len(made) and not {"id_001/0.png", "id_002/1.png"} & set(made.images())


def test_copies_are_no_positives_and_images_of_two_identities_are_left_out(tmp_path):
    """Of one identity there are three copies and a single other photo; two others share a photo."""
    root = write_identities(tmp_path / "photos", identities=8)
    for image in sorted((root / "id_001").iterdir())[2:]:
        image.unlink()
    for name in ("copy", "export"):
        shutil.copy(root / "id_001/0.png", root / f"id_001/{name}.png")
    shutil.copy(root / "id_002/0.png", root / "id_003/of_002.png")
    made = make_conversations(index_of(root), ENCODER, [GalleryRule(k=2, tau=-1.0)], "pet", workers=0, progress=False)
    hashes = made.images()
    for conversation in made:
        images = [hashes[image.path] for image in (conversation.query, *conversation.gallery)]
        assert len(set(images)) == len(images), "the query itself is not in its gallery"
    of_one = {c.query.path: c.gallery[c.answer - 1].path for c in made if c.query.identity == "id_001"}
    assert of_one == {"id_001/0.png": "id_001/1.png", "id_001/1.png": "id_001/0.png"}
    assert sorted(made.meta["copies"]) == ["id_001/copy.png: of id_001/0.png", "id_001/export.png: of id_001/0.png"]
    assert sorted(made.meta["disputed"]) == ["id_002/0.png: id_002", "id_003/of_002.png: id_003"]
    assert not {"id_002/0.png", "id_003/of_002.png"} & set(hashes)


def test_a_photo_with_nothing_but_copies_has_no_positive(tmp_path):
    root = write_identities(tmp_path / "photos", identities=6)
    for image in sorted((root / "id_000").iterdir())[1:]:
        shutil.copy(root / "id_000/0.png", image)
    made = make_conversations(index_of(root), ENCODER, [GalleryRule(k=2, tau=-1.0)], "pet", workers=0, progress=False)
    assert "id_000" not in made.column("query_identity")
    assert sum(reasons["tau=-1"][NO_POSITIVE] for reasons in made.meta["skipped"].values()) == 1


def test_limits(photos, made):
    def of_test(which):
        return which.select((which.column("split") == "test") & (which.column("level") == "quantile=0.2"))

    everywhere, here = made_of(photos, at_most=5), made_of(photos, at_most={"train": 3}, splits=["test", "train"])
    assert len(of_test(everywhere)) == 5 and [*of_test(here)] == [*of_test(made)]
    assert set(here.column("split")) == {"test", "train"} and (here.column("split") == "train").sum() == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"category": "vehicle"}, "Unknown category"),
        ({"splits": ["query"]}, "no images in split 'query'"),
        ({"rules": [GalleryRule(k=2), GalleryRule(k=3)]}, "one rule for each level"),
        ({"rules": []}, "one at least"),
        ({"at_most": {"tset": 3}}, "at_most names tset"),
        ({"encoder": "general_mobilenet.world"}, "Did you mean general"),
    ],
)
def test_what_cannot_be_built_is_refused(photos, options, message):
    given = {"encoder": ENCODER, "rules": RULES, "category": "pet"} | options
    with pytest.raises(ValueError, match=message):
        make_conversations(index_of(photos), workers=0, progress=False, **given)


# ---------------------------------------------------------------------- several processes


def work(number: int, folder: str, root: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    made = made_of(Path(root), per_query=2, at_most={"train": 30})
    made.save(f"{folder}/{number}.jsonl")
    dist.destroy_process_group()


def test_two_processes_make_what_one_makes(photos, tmp_path):
    mp.spawn(work, (str(tmp_path), str(photos)), nprocs=2)
    made_of(photos, per_query=2, at_most={"train": 30}).save(tmp_path / "one.jsonl")
    one = (tmp_path / "one.jsonl").read_bytes()
    assert one == (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes() and len(one) > 10_000
