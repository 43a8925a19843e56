"""ONNX files of encoders: from the bytes of an image, onnxruntime gives what torch gives, or there is no file."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from experts import export
from experts.export import ExportError, export_onnx, facts, max_difference
from zoo.backbones import TimmEncoder
from zoo.cards.cardfile import Card, Threshold
from zoo.contracts import IdentityEncoder
from zoo.transforms import Transform

BACKBONES = ["test_resnet", "test_vit", "mobilenetv3_small_050"]


class Tiny(IdentityEncoder):
    """An encoder that exports in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = Transform((16, 8), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), "bilinear")
        self.embed_dim = 5
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Dropout())

    def features(self, images: Tensor) -> Tensor:
        return self.body(images).mean((2, 3))

    def neck(self, features: Tensor) -> Tensor:
        return features


class FixedBatch(Tiny):
    """Counts its images in Python, where no graph sees it."""

    def features(self, images: Tensor) -> Tensor:
        return super().features(images) + torch.zeros(int(images.shape[0]), 5)


class Branching(Tiny):
    """Takes another path for black images."""

    def features(self, images: Tensor) -> Tensor:
        return super().features(images) * (1 if images.mean() > -1 else -1)


def make(backbone: str, **arguments: Any) -> TimmEncoder:
    """An encoder whose BatchNorms, the neck among them, are far from doing nothing."""
    torch.manual_seed(0)
    encoder = TimmEncoder(backbone, size=(64, 32), **arguments)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 2.0)
    return encoder


def run(path: Path, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def noise(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, 256, (batch, 3, height, width), dtype=np.uint8)


def check_ends(encoder: TimmEncoder, path: Path) -> None:
    graph = onnx.load(path).graph
    ends = [*graph.input, *graph.output]
    shapes = [[dim.dim_param or dim.dim_value for dim in end.type.tensor_type.shape.dim] for end in ends]
    assert [end.name for end in ends] == ["images", "embeddings"]
    assert shapes == [["batch", 3, 64, 32], ["batch", encoder.embed_dim]]
    assert [end.type.tensor_type.elem_type for end in ends] == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT]


@pytest.fixture(params=BACKBONES, scope="module")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TimmEncoder, Path]:
    encoder = make(request.param).train()
    return encoder, export_onnx(encoder, tmp_path_factory.mktemp("onnx") / "expert.onnx")


def test_onnxruntime_gives_the_embeddings_of_torch(exported: tuple[TimmEncoder, Path]) -> None:
    encoder, path = exported
    for batch in (1, 2, 5):
        images = noise(batch, 64, 32)
        found = run(path, images)
        expected = encoder.embed(encoder.transform.normalise(torch.from_numpy(images))).numpy()
        assert found.shape == (batch, encoder.embed_dim) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    before_neck = nn.functional.normalize(encoder.eval().features(encoder.transform.normalise(torch.tensor(images))))
    assert np.abs(found - before_neck.detach().numpy()).max() > 0.01, "a file without the neck would be noticed"


def test_a_photo_takes_the_way_that_the_file_describes(exported: tuple[TimmEncoder, Path]) -> None:
    encoder, path = exported
    said = facts(path)
    photo = Image.fromarray(noise(1, 90, 70)[0].transpose(1, 2, 0))
    height, width = json.loads(said["size"])
    resized = photo.resize((width, height), Image.Resampling[said["interpolation"].upper()])
    found = run(path, np.asarray(resized).transpose(2, 0, 1)[None])
    np.testing.assert_allclose(found, encoder.embed(encoder.transform(photo)[None]).numpy(), atol=1e-5)


def test_the_graph_is_plain_onnx_with_named_ends(exported: tuple[TimmEncoder, Path]) -> None:
    encoder, path = exported
    check_ends(encoder, path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert os.getcwd().encode() not in path.read_bytes(), "the folders of this machine are nobody's business"


def test_the_encoder_is_left_as_it_was(tmp_path: Path) -> None:
    encoder = Tiny().train()
    encoder.body[2].eval()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    seed = torch.random.get_rng_state()
    export_onnx(encoder, tmp_path / "a.onnx")
    assert encoder.training and encoder.body[0].training and not encoder.body[2].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_facts_of_encoder_and_card(tmp_path: Path) -> None:
    encoder = Tiny()
    said = facts(export_onnx(encoder, tmp_path / "a.onnx"))
    assert (said["name"], said["size"], said["interpolation"]) == ("a", "[16, 8]", "bilinear")
    assert (json.loads(said["mean"]), json.loads(said["std"])) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
    assert json.loads(said["embed_dim"]) == 5 and float(said["max_difference"]) < 1e-5
    assert "Outside of the graph" in said["resizing"] and "bilinear" in said["resizing"]
    assert not said.keys() & {"threshold", "licence", "description"}, "what is not known is not said"

    encoder.threshold = Threshold(0.625, 0.001, 0.02, "val")
    weights = {"file": "model.safetensors", "sha256": "0" * 64, "size": 0}
    card = Card.from_dict({"name": "pet.lab", "class": "x.Tiny", "weights": weights, "licence": "CC0-1.0"})
    said = facts(export_onnx(encoder, tmp_path / "a.onnx", opset=17, card=card))
    assert (said["name"], said["licence"], said["threshold"]) == ("pet.lab", "CC0-1.0", "0.625")
    assert (said["threshold_far"], said["threshold_frr"], said["threshold_data"]) == ("0.001", "0.02", "val")


@pytest.mark.parametrize("opset", [14, 17])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_older_opsets(tmp_path: Path, backbone: str, opset: int) -> None:
    encoder = make(backbone)
    path = export_onnx(encoder, tmp_path / "a.onnx", opset=opset)
    assert {entry.domain: entry.version for entry in onnx.load(path).opset_import} == {"": opset}
    check_ends(encoder, path)
    images = noise(4, 64, 32)
    expected = encoder.embed(encoder.transform.normalise(torch.from_numpy(images))).numpy()
    np.testing.assert_allclose(run(path, images), expected, atol=1e-5)
    assert os.getcwd().encode() not in path.read_bytes()


def test_the_opset_asked_for(tmp_path: Path) -> None:
    model = onnx.load(export_onnx(Tiny(), tmp_path / "a.onnx", opset=18))
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}


@pytest.mark.parametrize("opset", [9, 99])
def test_an_opset_that_cannot_be_had(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ExportError, match=f"{opset}"):
        export_onnx(Tiny(), tmp_path / "a.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def without_normalisation(self: Any, images: Tensor) -> Tensor:
    return nn.functional.normalize(self.encoder(images.float() / 255), dim=1)


def test_a_graph_that_differs_is_refused_and_the_earlier_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, path = Tiny(), tmp_path / "a.onnx"
    export_onnx(encoder, path, 17)
    before = path.read_bytes()
    monkeypatch.setattr(export._Graph, "forward", without_normalisation)
    with pytest.raises(ExportError, match=r"differs from torch by up to [\d.]+, more than the tolerance of 0.0001"):
        export_onnx(encoder, path, 17)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    export_onnx(encoder, path, 17, tolerance=2.0)
    assert max_difference(encoder, path) > 0.01
    assert float(facts(path)["max_difference"]) == pytest.approx(max_difference(encoder, path), rel=0.1)


def test_another_encoder_is_told_from_that_of_the_file(tmp_path: Path) -> None:
    path = export_onnx(Tiny(), tmp_path / "a.onnx", 17)
    assert max_difference(Tiny(), path) > 0.01
    wider = Tiny()
    wider.body[0] = nn.Conv2d(3, 6, 3)
    with pytest.raises(ExportError, match=r"gives \(1, 5\), the encoder \(1, 6\)"):
        max_difference(wider, path)
    (tmp_path / "b.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"onnxruntime cannot run b\.onnx"):
        max_difference(Tiny(), tmp_path / "b.onnx")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    encoder = Tiny()
    nn.init.constant_(encoder.body[0].bias, float("nan"))
    with pytest.raises(ExportError, match="by up to nan"):
        export_onnx(encoder, tmp_path / "a.onnx", tolerance=float("inf"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (FixedBatch, "takes any number of images"),
        (Branching, "cannot export Branching|differs from torch"),
        (lambda: Tiny().half(), r"holds weights in float16. Export encoder.float\(\)"),
    ],
)
def test_encoders_that_cannot_be_exported(tmp_path: Path, encoder: Any, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        export_onnx(encoder(), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoder", [FixedBatch, Branching])
def test_what_tracing_takes_for_constant_is_found_out(tmp_path: Path, encoder: type[Tiny]) -> None:
    """Tracing follows two black images; the random ones are another number, and take the other branch."""
    with pytest.raises(ExportError, match="onnxruntime cannot run|differs from torch|gives"):
        export_onnx(encoder(), tmp_path / "a.onnx", opset=17)
    assert not list(tmp_path.iterdir())


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for path, said in {
        "a.pt": r"not named \*\.onnx",
        "folder.onnx": "is a folder",
        "none/a.onnx": "There is no folder",
    }.items():
        with pytest.raises(ExportError, match=said):
            export_onnx(Tiny(), tmp_path / path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "LARGEST_FILE", 0)
    encoder = make("test_resnet")
    path = export_onnx(encoder, tmp_path / "big.onnx", opset=17)
    data = tmp_path / "big.onnx.data"
    assert sorted(tmp_path.iterdir()) == [path, data] and data.stat().st_size > 10 * path.stat().st_size
    assert data.stat().st_mode == path.stat().st_mode
    assert max_difference(encoder, path) < 1e-5


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'instance-zoo\[onnx\]'"):
        export_onnx(Tiny(), tmp_path / "a.onnx")
