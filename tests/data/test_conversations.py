"""The manifest of conversations: what it holds, that it loads anywhere, and what it refuses."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from torch import distributed as dist

import zoo
from tests.conftest import write_identities
from zoo.data.conversations import Conversations, ImageRef, build
from zoo.data.embedded import embed
from zoo.data.galleries import NO_POSITIVE, TOO_FEW, GalleryRule
from zoo.data.index import IdentityIndex
from zoo.data.readers import read_with

ENCODER = "general_mobilenetv3s050.world"
RULES = [GalleryRule(k=(2, 3), tau=None, tau_quantile=0.2), GalleryRule(k=2, tau=0.3, no_match=0.5)]


def index_of(root: Path) -> IdentityIndex:
    return read_with("folder", root)


def made_of(root: Path, **options) -> Conversations:
    return build(index_of(root), ENCODER, RULES, "pet", workers=0, progress=False, **options)


@pytest.fixture(scope="module")
def made(photos):
    return made_of(photos)


@pytest.fixture
def own(made, photos, tmp_path):
    """The same over a copy of the photos that may be changed."""
    shutil.copytree(photos, tmp_path / "photos")
    return Conversations(tmp_path / "photos", made._table, made.meta)


# ---------------------------------------------------------------------- what it holds


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


def test_selections_and_columns(made):
    chosen = made.select(np.array([5, 0, 5]))
    assert [*chosen] == [made[5], made[0], made[5]] and chosen.column("answer").dtype == np.int64
    mask = made.column("answer") == 0
    assert 0 < mask.sum() < len(made) and [c.answer for c in made.select(mask)] == [0] * mask.sum()
    assert made.column("k").tolist() == [len(c.gallery) for c in made]
    assert chosen.column("k").tolist() == [len(c.gallery) for c in chosen], "also of a part"
    assert made.column("query_identity").tolist() == [c.query.identity for c in made]
    assert len(made.select(np.zeros(len(made), dtype=bool))) == 0
    with pytest.raises(IndexError):
        made[len(made)]
    with pytest.raises(ValueError, match="Known: split"):
        made.column("gallery")


def test_boxes_travel_along(photos, tmp_path):
    index = index_of(photos)
    boxes = np.tile(np.array([2.0, 3.0, 20.0, 21.5], dtype=np.float32), (len(index), 1))
    boxes[::2] = -1
    made = build(replace(index, boxes=boxes), ENCODER, RULES[:1], "pet", ["train"], 10, workers=0, progress=False)
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
    made = build(index_of(root), ENCODER, [GalleryRule(k=2, tau=-1.0)], "pet", workers=0, progress=False)
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
    made = build(index_of(root), ENCODER, [GalleryRule(k=2, tau=-1.0)], "pet", workers=0, progress=False)
    assert "id_000" not in made.column("query_identity")
    assert sum(reasons["tau=-1"][NO_POSITIVE] for reasons in made.meta["skipped"].values()) == 1


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (GalleryRule(k=9, tau=-1.0), r"in the val split: it has 2 identities, and a gallery needs 9. .*with --k 2."),
        (
            GalleryRule(k=(2, 3), tau=-1.0, no_match=0.5),
            r"val split: it has 2 identities, and a .* needs 3. Add some.$",
        ),
        (GalleryRule(k=2, tau=1.0), r"no pet conversation in the val split; queries skipped: .* Lower --tau"),
    ],
)
def test_a_split_without_conversations_says_why(photos, rule, said):
    made = build(index_of(photos), ENCODER, [rule], "pet", ["val"], workers=0, progress=False)
    (sentence,) = made.lacking()
    assert re.search(said, sentence)
    assert (
        build(index_of(photos), ENCODER, [GalleryRule(k=2, tau=-1)], "pet", workers=0, progress=False).lacking() == []
    )


def test_limits(photos, made):
    def of_test(which):
        return which.select((which.column("split") == "test") & (which.column("level") == "quantile=0.2"))

    everywhere, here = made_of(photos, at_most=5), made_of(photos, at_most={"train": 3}, splits=["test", "train"])
    assert len(of_test(everywhere)) == 5 and [*of_test(here)] == [*of_test(made)]
    assert set(here.column("split")) == {"test", "train"} and (here.column("split") == "train").sum() == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"category": "vehicle"}, "Unknown category"),
        ({"splits": ["query"]}, "no images in split 'query'"),
        ({"rules": [GalleryRule(k=2), GalleryRule(k=3)]}, "one rule for each level"),
        ({"rules": []}, "one at least"),
        ({"at_most": {"tset": 3}}, "at_most names tset"),
        ({"encoder": "general_mobilenet.world"}, "Did you mean general"),
    ],
)
def test_what_cannot_be_built_is_refused(photos, options, said):
    given = {"encoder": ENCODER, "rules": RULES, "category": "pet"} | options
    with pytest.raises(ValueError, match=said):
        build(index_of(photos), workers=0, progress=False, **given)


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_file_holds_everything_and_moves_with_its_images(own, tmp_path, suffix):
    own.save(tmp_path / f"c{suffix}")
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted([f"c{suffix}", "photos"])
    (tmp_path / "moved").mkdir()
    for name in (f"c{suffix}", "photos"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    found = Conversations.load(tmp_path / "moved" / f"c{suffix}")
    assert [*found] == [*own] and found.meta == own.meta and len(found) > 50
    found.check(ENCODER)


def test_a_file_below_its_images_finds_them(own, tmp_path):
    own.save(tmp_path / "photos/made/today/c.parquet")
    assert Conversations.load(tmp_path / "photos/made/today/c.parquet").root.resolve() == own.root.resolve()


def test_a_file_elsewhere_finds_its_images_while_both_stay_there(own, tmp_path):
    """As `--root photos --out runs/mine` leaves them; a copy that was moved alone has to be told."""
    path = tmp_path / "runs/mine/c.parquet"
    own.save(path)
    assert str(tmp_path) not in path.read_bytes().decode("latin1")
    found = Conversations.load(path)
    assert found.root == own.root and [*found] == [*own]
    moved = Path(shutil.copy(path, tmp_path / "c.parquet"))
    said = rf"photos/{own[0].query.path} is not there. .*--data.galleries '\[{{manifest: {moved}, root: PHOTOS}}\]'"
    with pytest.raises(ValueError, match=said):
        Conversations.load(moved)
    assert [*Conversations.load(moved, own.root)] == [*own]


def test_a_file_that_has_nothing_in_common_with_its_images_has_to_be_told(made, tmp_path):
    Conversations(Path("/somewhere/else"), made._table, made.meta).save(tmp_path / "c.jsonl")
    assert "somewhere" not in (tmp_path / "c.jsonl").read_text()
    with pytest.raises(ValueError, match="cannot say where they are. Give their folder: --data.galleries"):
        Conversations.load(tmp_path / "c.jsonl")


def test_images_of_the_world_are_found_by_its_name(made, tmp_path, zoo_home, monkeypatch):
    Conversations(zoo_home / "worlds/pets-v9-0123456789/inner", made._table, made.meta).save(tmp_path / "c.jsonl")
    monkeypatch.setenv("INSTANCE_ZOO_HOME", "/another/home")
    assert Conversations.load(tmp_path / "c.jsonl").root == Path("/another/home/worlds/pets-v9-0123456789/inner")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_no_conversation_at_all_is_a_manifest_too(made, tmp_path, suffix):
    made.select(np.zeros(0, dtype=int)).save(tmp_path / f"c{suffix}")
    found = Conversations.load(tmp_path / f"c{suffix}", tmp_path)
    assert len(found) == 0 and [*found] == [] and found.column("k").tolist() == [] and found.images() == {}


def test_a_newer_or_truncated_file_is_refused(made, tmp_path):
    path = tmp_path / "c.jsonl"
    made.save(path)
    whole = path.read_text()
    path.write_text(whole.replace('"version": 1', '"version": 2', 1))
    with pytest.raises(ValueError, match="format 2, newer than 1.*Update"):
        Conversations.load(path, tmp_path)
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="truncated"):
        Conversations.load(path, tmp_path)
    path.write_text(whole[:-20])
    with pytest.raises(ValueError, match="no manifest of conversations"):
        Conversations.load(path, tmp_path)
    made.save(path := tmp_path / "c.parquet")
    table = pq.read_table(path)
    head = json.loads(table.schema.metadata[b"instance-zoo"]) | {"version": 3}
    newer = table.drop_columns(["tau"]).replace_schema_metadata({b"instance-zoo": json.dumps(head)})
    pq.write_table(newer, path)
    with pytest.raises(ValueError, match="format 3, newer than 1"):
        Conversations.load(path, tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"path,identity\na,b\n", b"\xff\xfe\x00", b"[]\n", b'{"version": 1}\n', b'{"kind": "x"}\nnull\n']
)
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no manifest of conversations"):
        Conversations.load(path, tmp_path)


def test_other_files_are_refused(made, tmp_path):
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "embeddings.parquet")
    with pytest.raises(ValueError, match="no manifest of conversations"):
        Conversations.load(tmp_path / "embeddings.parquet")
    with pytest.raises(ValueError, match="ends in '.csv'"):
        Conversations.load(tmp_path / "manifest.csv")
    with pytest.raises(ValueError, match="ends in 'nothing'"):
        made.save(tmp_path / "manifest")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        Conversations.load(tmp_path / "c.parquet")


# ---------------------------------------------------------------------- checks


def test_check_refuses_another_encoder_and_other_images(own, photos):
    own.check(ENCODER)
    with pytest.raises(ValueError, match="mined with general_.*not with pet_"):
        own.check("pet_mobilenetv3s050.world", images=False)
    changed = {"name": ENCODER, "sha256": "0" * 64}
    with pytest.raises(ValueError, match="tau does not mean the same"):
        Conversations(photos, own._table, own.meta | {"encoder": changed}).check(ENCODER, images=False)
    first, other = own[0].gallery[0].path, own[len(own) - 1].query.path
    Image.new("RGB", (32, 32)).save(own.root / first)
    with pytest.raises(ValueError, match=f"1 changed \\(such as {first}\\)"):
        own.check()
    (own.root / other).unlink()
    with pytest.raises(ValueError, match=f"1 missing \\(such as {other}\\) and 1 changed"):
        own.check()
    own.check(images=False)
    untouched = [row for row, c in enumerate(own) if not {first, other} & {i.path for i in (c.query, *c.gallery)}]
    own.select(np.array(untouched)).check(ENCODER), "a selection asks for its own images only"
    with pytest.raises(ValueError, match="missing"):
        Conversations(photos / "nowhere", own._table, own.meta).check()


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


def test_embedding_is_that_of_one_image_at_a_time(photos):
    index, encoder = index_of(photos), zoo.load(ENCODER)
    encoder.train()
    rows = np.array([7, 3, 40, 41])
    found = embed(index, encoder, rows, workers=0, progress=False, batch_size=3)
    alone = torch.cat([encoder.embed(encoder.transform(index.image(row))[None]) for row in sorted(rows)])
    assert found.rows.tolist() == [3, 7, 40, 41] and torch.allclose(found.vectors, alone, atol=1e-5)
    assert torch.equal(found.of(np.array([40, 3])), found.vectors[[2, 0]])
    assert len(embed(index, encoder, rows[:0], workers=0, progress=False).rows) == 0


def test_an_encoder_that_gives_no_numbers_is_refused(photos):
    index, encoder = index_of(photos), zoo.load(ENCODER)
    for parameter in encoder.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="The embedding of id_000/0.png is not finite"):
        embed(index, encoder, np.arange(2), workers=0, progress=False)


def test_an_image_is_a_plain_tuple(made):
    query = made[0].query
    assert isinstance(query, ImageRef) and query == (query.path, query.identity, query.box)
