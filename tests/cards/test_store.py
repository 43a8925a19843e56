"""Cards, the shelf, loading, saving, and every way in which a component can be out of order."""

import errno
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import zoo
from zoo import cards
from zoo.backbones import TimmEncoder
from zoo.cards import Card, CardError, Score, check_packages, load, load_tensors, push, register, resolve, save, shelf
from zoo.contracts import IdentityEncoder
from zoo.module import ZooModule
from zoo.transforms import Transform


@register
class Tiny(IdentityEncoder):
    """An encoder that builds in no time."""

    def __init__(self, width: int = 4, sizes: list[int] | None = None) -> None:
        super().__init__()
        self._init_args = {"width": width, "sizes": sizes}
        self.transform = Transform((8, 8), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "bilinear")
        self.embed_dim = width
        self.conv = nn.Conv2d(3, width, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(width)
        self.norm.bias.requires_grad_(False)

    def init_args(self) -> dict[str, object]:
        return self._init_args

    def features(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))

    def neck(self, features: Tensor) -> Tensor:
        return self.norm(features)


class Odd(ZooModule):
    """A module whose state a test can choose."""


class Counting(nn.Module):
    """State that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"step": 3}


register(Odd)


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    module = Tiny(sizes=(1, 2))  # type: ignore[arg-type]
    module(torch.randn(8, 3, 8, 8))  # moves the statistics of the norm
    module.transform = Transform((8, 10), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    return module


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    save(tiny, tmp_path / "pet_tiny.world", head={"weight": torch.arange(6.0)})
    return tmp_path / "pet_tiny.world"


def edit(folder: Path, **entries: object) -> None:
    """Change keys of a folder's card; None takes a key away."""
    card = yaml.safe_load((folder / "card.yaml").read_text()) | entries
    (folder / "card.yaml").write_text(yaml.safe_dump({k: v for k, v in card.items() if v is not None}))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_timm_encoder_embeds_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    encoder = TimmEncoder("mobilenetv3_small_050", size=64)
    encoder(torch.randn(4, 3, 64, 64))  # in training mode: moves the BatchNorm statistics
    encoder.to(dtype)
    images = torch.randn(3, 3, 64, 64, dtype=dtype)
    save(encoder, tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert isinstance(loaded, TimmEncoder)
    assert torch.equal(loaded.embed(images), encoder.embed(images))
    assert {t.dtype for t in loaded.parameters()} == {dtype}
    strides = {name: tensor.stride() for name, tensor in encoder.state_dict().items()}
    assert {name: tensor.stride() for name, tensor in loaded.state_dict().items()} == strides


def test_load_gives_a_module_ready_for_inference(tiny: Tiny, folder: Path) -> None:
    loaded = load(str(folder), device="cpu")
    assert isinstance(loaded, Tiny)
    assert not loaded.training
    assert loaded.transform == tiny.transform
    assert loaded.init_args() == {"width": 4, "sizes": [1, 2]}
    assert {n: p.requires_grad for n, p in loaded.named_parameters()} == {
        n: p.requires_grad for n, p in tiny.named_parameters()
    }
    assert torch.equal(load_tensors(folder)["weight"], torch.arange(6.0))


def test_load_leaves_the_random_state_alone(folder: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_mixed_dtypes_survive(tiny: Tiny, tmp_path: Path) -> None:
    tiny.conv.to(torch.float16)
    save(tiny, tmp_path / "a")
    assert {n: t.dtype for n, t in load(tmp_path / "a").state_dict().items()} == {
        n: t.dtype for n, t in tiny.state_dict().items()
    }


def test_save_returns_the_card_that_is_written(tiny: Tiny, tmp_path: Path) -> None:
    rank1 = torch.tensor(0.5)
    score = {"dataset": "world", "protocol": "all", "date": "2026-01-31", "values": {"rank1": rank1}}
    written = save(
        tiny,
        tmp_path / "new" / "x",
        name="pet_tiny.world",
        training_data="the procedural world",
        licence="Apache-2.0",
        scores=[score, Score("a", "b", "2026-01-30", {"mAP": 0.25})],
    )
    assert written == zoo.card(tmp_path / "new" / "x")
    assert (written.name, written.extra) == ("pet_tiny.world", [])
    assert written.class_path.endswith("test_store.Tiny")
    assert [s.values for s in written.scores] == [{"rank1": 0.5}, {"mAP": 0.25}]
    assert written.versions["torch"] == torch.__version__
    assert set(written.versions) == {"instance-zoo", "torch", "timm", "transformers", "lightning", "python"}


def test_tied_weights_come_back_tied(tmp_path: Path) -> None:
    save(Tied(), tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert loaded.first.weight is loaded.second.weight


@register
class Tied(ZooModule):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


# ---------------------------------------------------------------------- the card


CARD = {
    "name": "pet_tiny.world",
    "class": "zoo.backbones.TimmEncoder",
    "weights": {"file": "model.safetensors", "sha256": "0" * 64, "size": 1},
}


def test_a_card_reads_what_people_write(tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text(
        yaml.safe_dump(CARD) + "scores: [{dataset: d, protocol: p, date: 2026-01-31, values: {mAP: 1}}]\n"
    )
    card = Card.read(tmp_path / "card.yaml")
    assert card.scores[0].date == "2026-01-31"
    assert card.scores[0].values == {"mAP": 1.0}
    card.write(tmp_path / "again.yaml")
    assert Card.read(tmp_path / "again.yaml") == card


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lisence": "MIT"}, "unknown key 'lisence'. Did you mean 'licence'"),
        ({"zzz": 1}, "Known keys: name, description, category, class"),
        ({"name": None}, "missing key 'name'"),
        ({"class": None}, "missing key 'class'"),
        ({"weights": None}, "missing key 'weights'"),
        ({"weights": {"file": "a.safetensors", "sha256": "0" * 64}}, "weights: missing key 'size'"),
        ({"weights": {**CARD["weights"], "file": "../up.safetensors"}}, "plain .safetensors file name"),
        ({"weights": {**CARD["weights"], "file": "model.bin"}}, "plain .safetensors file name"),
        ({"weights": {**CARD["weights"], "sha256": "abc"}}, "64 lower-case hex digits"),
        ({"extra": [{"file": "h.safetensors", "hash": 1}]}, r"extra\[0\]: unknown key 'hash'"),
        ({"name": "../evil"}, "cannot be a folder's name"),
        ({"name": 5}, "name is 5 .int.; it must be str"),
        ({"init": [1]}, "it must be dict"),
        ({"transform": "none"}, "it must be dict or NoneType"),
        ({"scores": [{"dataset": "d", "protocol": "p", "date": "", "values": {"mAP": ""}}]}, "not a number"),
    ],
)
def test_a_card_out_of_order_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(CardError, match=said):
        Card.from_dict({k: v for k, v in (CARD | change).items() if v is not None})


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", ""])
def test_a_card_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(CardError, match=r"not YAML|a mapping is due"):
        zoo.card(tmp_path)


def test_init_args_must_be_plain(tiny: Tiny, tmp_path: Path) -> None:
    tiny._init_args = {"width": 4, "sizes": [torch.float32]}
    with pytest.raises(CardError, match=r"init_args\(\).sizes\[0\] is torch.float32 .*cannot hold"):
        save(tiny, tmp_path / "a")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- names and places


@pytest.fixture
def shelved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder.parent / ".pet_tiny.world.1.part").mkdir()
    (folder.parent / ".pet_tiny.world.1.part" / "card.yaml").write_text("half written")
    (folder.parent / "face_tiny.world").mkdir()
    (folder.parent / "face_tiny.world" / "card.yaml").write_text(yaml.safe_dump(CARD))
    monkeypatch.setattr(shelf, "shelf", lambda: folder.parent)
    return folder.parent


def test_names_on_the_shelf(shelved: Path) -> None:
    assert zoo.list_models() == ["face_tiny.world", "pet_tiny.world"]
    assert zoo.list_models("pet_*") == ["pet_tiny.world"]
    assert zoo.list_models("tiny") == []
    assert isinstance(zoo.load("pet_tiny.world"), Tiny)


def test_the_shelf_of_a_checkout_and_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "zoo"
    package.mkdir()
    (tmp_path / "checkpoints").mkdir()  # in site-packages: somebody else's
    monkeypatch.setattr(shelf, "__file__", str(package / "cards" / "shelf.py"))
    assert shelf.shelf() == package / "checkpoints"
    (tmp_path / "pyproject.toml").touch()
    assert shelf.shelf() == tmp_path / "checkpoints"
    (package / "checkpoints").mkdir()
    assert shelf.shelf() == package / "checkpoints"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("pet_tiny.word", "Unknown model 'pet_tiny.word'. Did you mean pet_tiny.world"),
        ("zzzz", "On the shelf: face_tiny.world, pet_tiny.world"),
        ("user/repo", "no folder 'user/repo'.*hf://user/repo"),
        ("/no/such/place", "no folder '/no/such/place'. Check the path"),
        ("hf:user/repo", "not a hub id. Write hf://"),
        ("hf://a/b/c/d", "not a hub id"),
    ],
)
def test_an_unknown_place_is_named(shelved: Path, where: str, said: str) -> None:
    with pytest.raises(CardError, match=said):
        zoo.load(where)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin", ".pt"])
def test_a_pickle_is_never_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"\x80\x04cos\nabort\n(tR.")  # unpickling this would end the process
    with pytest.raises(CardError, match="python -m recipes.zoo convert"):
        load(path)


def test_a_folder_without_a_card(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").touch()
    with pytest.raises(CardError, match=r"has no card.yaml; it holds weights.npz"):
        load(tmp_path)
    with pytest.raises(CardError, match="is a file. Point at the folder"):
        load(tmp_path / "weights.npz")


# ---------------------------------------------------------------------- damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["model.safetensors", "head.safetensors"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "are missing from"),
        (lambda path: path.rename(path.with_name("other.safetensors")), "holds .*other.safetensors"),
        (truncate, "is truncated: [0-9,]+ bytes, its card states"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "is not the file of its card"),
        (flip, "was changed: sha256"),
    ],
    ids=["missing", "renamed", "truncated", "longer", "flipped"],
)
def test_damage_is_found_before_anything_is_built(
    folder: Path, file: str, damage: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "build", lambda card: pytest.fail("built from damaged files"))
    damage(folder / file)  # type: ignore[operator]
    with pytest.raises(CardError, match=said):
        load(folder)


def test_another_architecture_is_named_tensor_by_tensor(folder: Path) -> None:
    edit(folder, init={"width": 5})
    with pytest.raises(CardError, match=r"fit Tiny. 6 of another shape: conv.weight \(4, 3, 3, 3\) for \(5,"):
        load(folder)


def test_missing_and_unexpected_tensors_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["extra.weight"] = tensors.pop("norm.weight")
    save_file(tensors, folder / "model.safetensors")
    edit(folder, weights=vars(shelf.describe(folder / "model.safetensors")))
    with pytest.raises(CardError, match=r"1 missing: norm.weight; 1 unexpected: extra.weight"):
        load(folder)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"init": {"wdith": 4}}, "cannot be built with {'wdith': 4}: .*unexpected keyword"),
        ({"transform": {"size": [8, 8], "means": [0]}}, "transform .* is refused"),
    ],
)
def test_arguments_that_do_not_fit(folder: Path, entries: dict[str, object], said: str) -> None:
    edit(folder, **entries)
    with pytest.raises(CardError, match=said):
        load(folder)


def test_weights_that_are_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04cos\nabort\n(tR.")
    edit(folder, weights=vars(shelf.describe(folder / "model.safetensors")))
    with pytest.raises(CardError, match="is not a safetensors file"):
        load(folder)


def test_a_file_the_card_does_not_list(folder: Path) -> None:
    with pytest.raises(CardError, match="no 'neck.safetensors', only model.safetensors, head.safetensors"):
        load_tensors(folder, "neck.safetensors")


# ---------------------------------------------------------------------- classes


@pytest.mark.parametrize(
    "class_path",
    [
        "os.system",
        "torch.nn.Linear",
        "builtins.eval",
        "recipes.cli.run",
        "zoo",
        "zoo.cards.store.load",  # no class
        "zoo.cards.cardfile.Card",  # no ZooModule
        "zoo.backbones.IdentityEncoder",  # defined elsewhere
        "zoo.module.LightningModule",
        "zoo.backbones.nn.Linear",
        "zoo.backbones.TimEncoder",
        "zoo.nowhere.Thing",
        "zoo..backbones.TimmEncoder",
        "zoo.__init__.ZooModule",
        "zooo.backbones.TimmEncoder",
    ],
)
def test_a_card_cannot_name_other_code(class_path: str, folder: Path) -> None:
    edit(folder, **{"class": class_path})
    with pytest.raises(CardError, match="(refused|does not exist).*(register|Did you mean|defines|Correct)"):
        load(folder)


def test_a_refused_class_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CardError, match="'evil.Thing' is refused"):
        resolve("evil.Thing")


def test_resolve_finds_the_class() -> None:
    assert resolve("zoo.backbones.TimmEncoder") is TimmEncoder
    assert resolve(f"{Tiny.__module__}.Tiny") is Tiny


def test_a_class_of_ones_own_must_be_registered(tmp_path: Path) -> None:
    class Own(ZooModule):
        pass

    with pytest.raises(CardError, match=r"Own' is refused.*zoo.register"):
        save(Own(), tmp_path / "a")
    register(Own)
    save(Own(), tmp_path / "a")
    assert type(load(tmp_path / "a")) is Own


def test_only_zoo_modules_can_be_registered() -> None:
    with pytest.raises(TypeError, match="derive from zoo.ZooModule"):
        register(nn.Linear)


@pytest.mark.parametrize("place", ["experts/__init__.py", "experts.py"])
def test_a_users_folder_of_the_same_name_is_noticed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("raise SystemExit('ran')")
    monkeypatch.delitem(sys.modules, "experts", raising=False)
    check_packages("experts")
    monkeypatch.syspath_prepend(tmp_path)
    own = Path(zoo.__file__).parent.parent / "experts"
    with pytest.raises(ImportError, match=f"finds {tmp_path}/experts.* hides the package .* at {own}"):
        check_packages()
    with pytest.raises(ImportError, match="Rename"):
        resolve("experts.pet.PetExpert")
    check_packages("fusion", "recipes")
    assert resolve("zoo.backbones.TimmEncoder") is TimmEncoder  # what needs no sibling goes on working


def test_an_imported_module_of_the_same_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("fusion")
    other.__file__ = "/elsewhere/fusion.py"
    monkeypatch.setitem(sys.modules, "fusion", other)
    with pytest.raises(ImportError, match="/elsewhere/fusion.py"):
        check_packages("fusion")


# ---------------------------------------------------------------------- saving


def test_save_refuses_what_is_in_use(tiny: Tiny, folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(CardError, match="exists.*overwrite=True"):
        save(tiny, folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CardError, match=r"holds more than a component \(notes.txt\)"):
        save(tiny, folder, overwrite=True)
    assert contents(folder) == before | {"notes.txt": b"mine"}


def test_overwrite_replaces_the_whole_folder(folder: Path) -> None:
    save(Tiny(width=6), folder, overwrite=True)
    assert sorted(contents(folder)) == ["card.yaml", "model.safetensors"]  # the earlier head is gone
    assert load(folder).embed_dim == 6
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("target", "said"),
    [("safetensors.torch.save_file", "No space left"), ("zoo.cards.cardfile.Card.write", "No space left")],
)
def test_a_failed_save_leaves_the_earlier_folder(
    folder: Path, target: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    monkeypatch.setattr(target, full_disk)
    with pytest.raises(CardError, match=said):
        save(Tiny(width=6), folder, overwrite=True)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_failed_swap_puts_the_earlier_folder_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, rename = contents(folder), Path.rename
    monkeypatch.setattr(Path, "rename", lambda p, to: full_disk() if p.suffix == ".part" else rename(p, to))
    with pytest.raises(CardError, match="The earlier one was kept"):
        save(Tiny(width=6), folder, overwrite=True)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_save_leaves_the_earlier_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    monkeypatch.setattr(shelf.Card, "write", lambda card, path: os.kill(os.getpid(), signal.SIGKILL))
    child = os.fork()
    if child == 0:
        try:
            save(Tiny(width=6), folder, overwrite=True)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert contents(folder) == before
    monkeypatch.undo()
    save(Tiny(width=6), folder, overwrite=True)  # what the killed one left does not stand in the way
    assert load(folder).embed_dim == 6


def test_killed_between_the_renames_says_where_the_earlier_one_is(folder: Path) -> None:
    folder.rename(folder.with_name(f".{folder.name}.1234.earlier"))
    with pytest.raises(CardError, match=r"a save was killed.*Rename .*\.1234\.earlier"):
        load(folder)


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    module = Odd()
    module.part = Counting()
    with pytest.raises(CardError, match="'part._extra_state' .* is a dict, and a weights file holds tensors"):
        save(module, tmp_path / "a")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [(torch.zeros(2, device="meta"), "meta"), (torch.eye(2).to_sparse(), "torch.sparse_coo")],
)
def test_tensors_that_cannot_be_stored_are_refused(tensor: Tensor, kind: str, tmp_path: Path) -> None:
    module = Odd()
    module.register_buffer("state", tensor)
    with pytest.raises(CardError, match=f"'state' .* is a {kind} tensor"):
        save(module, tmp_path / "a")


def test_a_changed_buffer_outside_the_state_dict_is_refused(tmp_path: Path) -> None:
    module = Drifting()
    save(module, tmp_path / "a")
    module.scale.fill_(2.0)
    with pytest.raises(CardError, match="Buffer 'scale' .* persistent=True"):
        save(module, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@register
class Drifting(ZooModule):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1), persistent=False)


# ---------------------------------------------------------------------- the hub


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """A hub that has `user/pet`, in `folder`; the list of calls that it gets."""
    calls: list[dict[str, object]] = []

    def snapshot_download(**call: object) -> str:
        calls.append(call)
        if call["repo_id"] == "user/pet":
            return str(folder)
        raise ConnectionError("no route to the hub")

    monkeypatch.setenv("INSTANCE_ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_hub_id_pulls_card_and_safetensors_only(hub: list[dict[str, object]], tmp_path: Path) -> None:
    assert isinstance(load("hf://user/pet@v1"), Tiny)
    assert hub == [
        {
            "repo_id": "user/pet",
            "revision": "v1",
            "cache_dir": tmp_path / "home" / "hub",
            "allow_patterns": ["card.yaml", "*.safetensors"],
        }
    ]
    assert zoo.card("hf://user/pet").name == "pet_tiny.world"
    assert (hub[1]["revision"], hub[1]["allow_patterns"]) == (None, ["card.yaml"])


def test_what_comes_from_a_hub_is_verified(hub: list[dict[str, object]], folder: Path) -> None:
    flip(folder / "model.safetensors")
    with pytest.raises(CardError, match="was changed"):
        load("hf://user/pet")


def test_offline_a_cached_copy_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(local_files_only: bool = False, **_: object) -> str:
        if not local_files_only:
            raise RuntimeError("proxy refused")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert isinstance(load("hf://user/pet"), Tiny)


def test_a_hub_out_of_reach(hub: list[dict[str, object]], tmp_path: Path) -> None:
    said = f"hf://user/other could not be pulled and is not in {tmp_path / 'home'}: no route to the hub"
    with pytest.raises(CardError, match=said):
        load("hf://user/other")


@pytest.mark.parametrize("source", ["user/pet", "hf://user/pet@v1"])
def test_weights_that_live_elsewhere_are_pulled(
    hub: list[dict[str, object]], folder: Path, tmp_path: Path, source: str
) -> None:
    """A card alone on the shelf; its weights come from `source`, and must be those of the card."""
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "card.yaml").write_bytes((folder / "card.yaml").read_bytes())
    edit(alone, source=source)
    assert isinstance(load(alone), Tiny)
    assert hub[0]["allow_patterns"] == ["model.safetensors", "head.safetensors"]
    flip(folder / "model.safetensors")
    with pytest.raises(CardError, match="was changed"):
        load(alone)


def test_push_uploads_a_verified_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object]] = []

    class Hub:
        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
            calls.append((repo_id, private))

        def upload_folder(self, **call: object) -> SimpleNamespace:
            calls.append((str(call["folder_path"]), call["allow_patterns"]))
            return SimpleNamespace(oid="abc")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push(folder, "user/pet") == "hf://user/pet@abc"
    files = ["card.yaml", "model.safetensors", "head.safetensors"]
    assert calls == [("user/pet", True), (str(folder), files)]
    flip(folder / "head.safetensors")
    with pytest.raises(CardError, match="was changed"):
        push(folder, "user/pet")
    assert len(calls) == 2


# ---------------------------------------------------------------------- what is on the shelf


@pytest.mark.parametrize("name", zoo.list_models())
def test_the_shelf_is_in_order(name: str) -> None:
    entry = cards.verify(name)
    assert entry.name == name
    assert issubclass(resolve(entry.class_path), ZooModule)
    assert entry.training_data and entry.data_licence and entry.licence and entry.recipe and entry.versions
    assert all(file.size <= 20e6 for file in entry.files)


def test_the_shelf_stays_small() -> None:
    sizes = {path: path.stat().st_size for path in shelf.shelf().rglob("*.safetensors")}
    assert sum(sizes.values()) <= 40e6, json.dumps({str(path): size for path, size in sizes.items()})
