"""`python -m recipes.zoo` and `python -m recipes`: what they print, what they write, what they refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import zoo
from recipes import zoo as recipe
from recipes.__main__ import main as list_recipes
from recipes.__main__ import recipes
from zoo.cards import register, save, shelf
from zoo.module import ZooModule


@register
class Linear(ZooModule):
    """A component that builds in no time."""

    example_input_array = torch.ones(1, 3)

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Sequential(nn.Linear(3, width), nn.Linear(width, width))

    def init_args(self) -> dict[str, Any]:
        return {"width": self.width}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


CLASS = f"{Linear.__module__}.Linear"


@pytest.fixture
def on_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf with two components."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(shelf, "shelf", lambda: tmp_path / "shelf")
    score = {"dataset": "d", "protocol": "leave one out", "date": "2026-01-31", "values": {"rank1": 0.875}}
    save(Linear(), tmp_path / "shelf" / "pet_a.world", licence="CC0-1.0", scores=[score])
    save(Linear(4), tmp_path / "shelf" / "face_b.world", training_data="[drawn]")
    return tmp_path / "shelf"


def test_list(on_shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["list"]) == 0
    out = capsys.readouterr().out
    assert out.index("face_b.world") < out.index("pet_a.world")
    assert "rank1 0.875" in out and "CC0-1.0" in out
    assert recipe.main(["list", "pet_*"]) == 0
    assert "face_b.world" not in capsys.readouterr().out
    assert recipe.main(["list", "nothing"]) == 0
    assert "Nothing on the shelf matches 'nothing'" in capsys.readouterr().out


def test_show(on_shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["show", "pet_a.world"]) == 0
    out = capsys.readouterr().out
    assert CLASS in out and "width: 2" in out and "leave one out" in out
    assert recipe.main(["show", "face_b.world"]) == 0
    assert "[drawn]" in capsys.readouterr().out, "square brackets are text, not colours"
    assert recipe.main(["show", "pet_b.world"]) == 1
    assert "Did you mean pet_a.world" in capsys.readouterr().err


def test_verify_reports_a_line_each(on_shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["verify"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok      face_b.world: 1 file(s) intact, gives (1, 4)",
        "ok      pet_a.world: 1 file(s) intact, gives (1, 2)",
    ]
    (on_shelf / "face_b.world" / "model.safetensors").write_bytes(b"short")
    assert recipe.main(["verify"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("failed  face_b.world:") and "is truncated: 5 bytes" in first
    assert second.startswith("ok      pet_a.world")
    assert recipe.main(["verify", "pet_a.world"]) == 0


def test_verify_runs_the_component(on_shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = Linear()
    nn.init.constant_(module.layer[0].bias, float("nan"))
    save(module, on_shelf / "pet_a.world", overwrite=True)
    assert recipe.main(["verify", "pet_a.world"]) == 1
    assert "its output is not finite" in capsys.readouterr().out


def test_verify_embeds_with_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from zoo.backbones import TimmEncoder

    save(TimmEncoder("mobilenetv3_small_050", size=32), tmp_path / "a")
    assert recipe.main(["verify", str(tmp_path / "a")]) == 0
    assert "gives (2, 1024)" in capsys.readouterr().out.replace("\n", "")


# ---------------------------------------------------------------------- export


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from experts.export import facts
    from zoo.backbones import TimmEncoder

    encoder = TimmEncoder("test_resnet", size=32)
    save(encoder, tmp_path / "a", name="pet.lab", licence="CC0-1.0")
    out = tmp_path / "pet.onnx"
    command = ["export", str(tmp_path / "a"), "--out", str(out)]
    assert recipe.main(command) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"pet.lab -> {out}, {out.stat().st_size / 1e6:.1f} MB"
    said = dict(line.split(maxsplit=1) for line in lines)
    assert said["input"].startswith("images, uint8 (batch, 3, 32, 32)")
    assert said["output"].startswith(f"embeddings, float32 (batch, {encoder.embed_dim})")
    assert said["difference"].startswith(f"at most {facts(out)['max_difference']} from torch")
    assert facts(out)["licence"] == "CC0-1.0"

    before = out.read_bytes()
    assert recipe.main(command) == 1
    assert "pet.onnx exists. Choose another --out, or pass --overwrite" in capsys.readouterr().err
    assert recipe.main([*command, "--overwrite", "--tolerance", "0"]) == 1
    assert "more than the tolerance of 0" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert recipe.main([*command, "--overwrite"]) == 0


def test_export_refuses(on_shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(on_shelf.parent / "a.onnx")
    for flags, said in {
        ("pet_a.world", "--out", out): "pet_a.world is a Linear, no identity encoder",
        ("pet_b.world", "--out", out): "Did you mean pet_a.world",
    }.items():
        assert recipe.main(["export", *flags]) == 1
        assert said in capsys.readouterr().err
    assert not Path(out).exists()


# ---------------------------------------------------------------------- convert


def convert(path: Path, *flags: str) -> int:
    return recipe.main(["convert", str(path), "--out", str(path.parent / "out"), *flags])


@pytest.mark.parametrize("container", [None, "state_dict", "model"])
@pytest.mark.parametrize(
    ("own", "foreign"),
    [("layer.", "layer."), ("layer.", "module.layer."), ("layer.", "backbone."), ("layer.", "")],
)
def test_convert_finds_the_weights(tmp_path: Path, container: str | None, own: str, foreign: str) -> None:
    module = Linear(3)
    state = {name.replace(own, foreign): tensor for name, tensor in module.state_dict().items()}
    torch.save({container: state, "epoch": 3} if container else state, tmp_path / "w.pth")
    assert convert(tmp_path / "w.pth", "--class", CLASS, "--init", "width=3") == 0
    loaded = zoo.load(tmp_path / "out")
    assert all(map(torch.equal, loaded.state_dict().values(), module.state_dict().values()))
    assert zoo.card(tmp_path / "out").init == {"width": 3}
    assert zoo.card(tmp_path / "out").recipe == "python -m recipes.zoo convert w.pth"


def test_convert_takes_a_part_by_prefix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"module.encoder.{name}": tensor for name, tensor in Linear().state_dict().items()}
    torch.save(state | {"module.classifier.weight": torch.ones(5, 2)}, tmp_path / "w.pth")
    assert convert(tmp_path / "w.pth", "--class", CLASS) == 1
    err = capsys.readouterr().err
    assert "do not fit Linear" in err and "module.encoder (4), module.classifier (1); --prefix" in err
    assert convert(tmp_path / "w.pth", "--class", CLASS, "--prefix", "module.neck") == 1
    assert "No weight is named module.neck.*" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert convert(tmp_path / "w.pth", "--class", CLASS, "--prefix", "module.encoder") == 0


def test_convert_with_a_card(tmp_path: Path) -> None:
    torch.save(Linear(3).state_dict(), tmp_path / "w.pth")
    card = {
        "name": "pet_linear.lab",
        "class": CLASS,
        "init": {"width": 3},
        "transform": {"size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"},
        "category": "pet",
        "threshold": {"value": 0.41, "far": 0.01, "frr": 0.2, "data": "cats, val"},
        "description": "Tells cats apart.",
        "training_data": "cats",
        "data_licence": "CC-BY-4.0",
        "licence": "MIT",
        "source": "lab/pets",
        "scores": [{"dataset": "cats", "protocol": "all", "date": "2026-01-31", "values": {"rank1": 0.5}}],
        "recipe": "train.py",
    }
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    assert convert(tmp_path / "w.pth", "--card", str(tmp_path / "card.yaml")) == 0
    written = zoo.card(tmp_path / "out")
    assert written.to_dict() | card == written.to_dict()
    loaded = zoo.load(tmp_path / "out")
    assert loaded.transform.size == (8, 8)  # type: ignore[union-attr]
    assert loaded.threshold == zoo.Threshold(0.41, 0.01, 0.2, "cats, val")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "No class to build"),
        (["--class", "os.system"], "'os.system' is refused"),
        (["--class", CLASS, "--init", "width"], "--init 'width' is not KEY=VALUE"),
        (["--class", CLASS, "--init", "width=["], "--init width=[ is not YAML"),
        (["--class", CLASS, "--init", "wide=3"], "cannot be built with {'wide': 3}"),
        (["--card", "/no/card.yaml"], "There is no file '/no/card.yaml'"),
    ],
)
def test_convert_refuses_flags(tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Linear().state_dict(), tmp_path / "w.pth")
    assert convert(tmp_path / "w.pth", *flags) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_convert_runs_no_code_of_a_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Linear().state_dict(), "hook": Bomb(tmp_path / "ran")}, tmp_path / "w.ckpt")
    assert convert(tmp_path / "w.ckpt", "--class", CLASS) == 1
    assert "unpickling those can run code: refused" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3, "optimizer": {}}, "holds no state dict, only: epoch, optimizer"),
        ([torch.ones(1)], "holds no state dict, only: list"),
    ],
)
def test_convert_without_a_state_dict(
    tmp_path: Path, content: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert convert(tmp_path / "w.pth", "--class", CLASS) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_convert_names_a_file_that_is_no_weights_file(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path / name, "--class", CLASS) == 1
    assert "There is no file" in capsys.readouterr().err
    (tmp_path / name).write_bytes(b"")
    assert convert(tmp_path / name, "--class", CLASS) == 1
    assert "is not a weights file" in capsys.readouterr().err


# ---------------------------------------------------------------------- python -m recipes


def test_recipes_are_found_without_importing_them(tmp_path: Path) -> None:
    run = 'if __name__ == "__main__":\n    main()\n'
    (tmp_path / "a.py").write_text(f'"""Train a.\n\nMore."""\nraise SystemExit\n{run}')
    (tmp_path / "cli.py").write_text('"""Not to be run."""\n')
    (tmp_path / "__main__.py").write_text(f'"""This list."""\n{run}')
    assert recipes(tmp_path) == {"a": "Train a."}


def test_every_recipe_says_what_it_does(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    list_recipes()
    out = capsys.readouterr().out
    assert "zoo" in recipes()
    for name, line in recipes().items():
        assert line.endswith("."), f"recipes/{name}.py has no first line"
        assert f"python -m recipes.{name}" in out
