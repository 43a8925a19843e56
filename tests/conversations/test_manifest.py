"""The manifest of conversations: what it holds, that it loads anywhere, and what it refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conversations.conftest import ENCODER, index_of
from zoo.conversations.manifest import Conversations, ImageRef
from zoo.conversations.pipeline import make_conversations
from zoo.conversations.rule import GalleryRule


@pytest.fixture
def own(made, photos, tmp_path):
    """The same over a copy of the photos that may be changed."""
    shutil.copytree(photos, tmp_path / "photos")
    return Conversations(tmp_path / "photos", made._table, made.meta)


# ---------------------------------------------------------------------- what it holds


def test_an_image_is_a_plain_tuple(made):
    query = made[0].query
    assert isinstance(query, ImageRef) and query == (query.path, query.identity, query.box)


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


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (GalleryRule(k=9, tau=-1.0), r"in the val split: it has 2 identities, and a gallery needs 9. .*with --k 2."),
        (
            GalleryRule(k=(2, 3), tau=-1.0, no_match=0.5),
            r"val split: it has 2 identities, and a .* needs 3. Add some.$",
        ),
        (GalleryRule(k=2, tau=1.0), r"no pet conversation in the val split; queries skipped: .* Lower --tau"),
    ],
)
def test_a_split_without_conversations_says_why(photos, rule, message):
    made = make_conversations(index_of(photos), ENCODER, [rule], "pet", ["val"], workers=0, progress=False)
    (sentence,) = made.lacking()
    assert re.search(message, sentence)
    of_two = make_conversations(index_of(photos), ENCODER, [GalleryRule(k=2, tau=-1)], "pet", workers=0, progress=False)
    assert of_two.lacking() == []


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
    message = rf"photos/{own[0].query.path} is not there. .*--data.galleries '\[{{manifest: {moved}, root: PHOTOS}}\]'"
    with pytest.raises(ValueError, match=message):
        Conversations.load(moved)
    assert [*Conversations.load(moved, own.root)] == [*own]


def test_a_file_that_has_nothing_in_common_with_its_images_has_to_be_told(made, tmp_path):
    Conversations(Path("/somewhere/else"), made._table, made.meta).save(tmp_path / "c.jsonl")
    assert "somewhere" not in (tmp_path / "c.jsonl").read_text()
    with pytest.raises(ValueError, match="does not record where they are. Give their folder: --data.galleries"):
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
