"""Writes an identity encoder as an ONNX file for other toolkits, normalisation inside, compared with torch first."""

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import Card
from zoo.contracts import IdentityEncoder

if TYPE_CHECKING:
    from onnx import ModelProto

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# Protobuf stops at 2 GiB a file; weights beyond this go to a file beside it.
LARGEST_FILE = 2**31 - 2**24
OLDEST_OPSET = 14


class ExportError(RuntimeError):
    """An encoder that could not be written, or whose file does not do what the encoder does."""


def export_onnx(
    encoder: IdentityEncoder,
    path: str | Path,
    opset: int | None = None,
    tolerance: float = 1e-4,
    card: Card | None = None,
) -> Path:
    """Write an encoder as an ONNX file; returns its path.

    The graph takes `images`, (B, 3, H, W) uint8 in RGB at the size of the encoder's transform, for any B, and gives
    `embeddings`, (B, embed_dim) float32 of unit length. It normalises by mean and std itself. Decoding and resizing
    stay outside: the whole image is resized to H x W, antialiased, by the interpolation that the file names.

    The file is run by onnxruntime on random images, one alone and three together, and takes the place of an earlier
    one only if no number differs from `encoder.embed` by more than `tolerance`. Otherwise nothing is left behind.
    `facts` reads the metadata of the file: the size, the threshold, the difference measured and the like. Weights
    beyond 2 GB lie beside it, in `<name>.onnx.data`.

    Args:
        encoder: left as it is; checked on the CPU, where float32 is not rounded to TF32.
        path: the file to write, *.onnx.
        opset: version of ONNX's operators; null for the one that torch recommends.
        tolerance: largest difference allowed in any number of an embedding.
        card: what is known of the encoder beside its weights: name, licence, training data.

    Raises:
        ImportError: a package is missing.
        ExportError: a path that cannot be written, an encoder that torch cannot export, or too large a difference.
    """
    _check_packages()
    path = Path(path).expanduser()
    _check_target(path)
    _check_dtype(encoder)
    if opset is not None and opset < OLDEST_OPSET:
        raise ExportError(f"opset {opset} is refused: attention needs {OLDEST_OPSET}. Ask for that, or none.")
    try:
        with _on_cpu_in_eval(encoder), TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
            file = Path(folder) / path.name
            _write(encoder, file, opset, {"name": card.name if card else path.stem, **_facts(encoder, card)})
            _append(file, {"max_difference": f"{_bounded_difference(encoder, file, tolerance):.2g}"})
            for part in Path(folder).iterdir():
                part.chmod(file.stat().st_mode)  # onnx keeps the data to its owner
            for part in sorted(Path(folder).iterdir(), reverse=True):  # the graph last, after its data
                part.replace(path.with_name(part.name))
    except OSError as error:
        raise ExportError(f"{path} could not be written: {error}. Make room or choose another place.") from error
    return path


def _bounded_difference(encoder: IdentityEncoder, file: Path, tolerance: float) -> float:
    """`max_difference`, refused beyond a tolerance."""
    difference = max_difference(encoder, file)
    if not difference <= tolerance:  # NaN is refused, too
        raise ExportError(
            f"The ONNX graph of {type(encoder).__name__} differs from torch by up to {difference:.2g}, more than the "
            f"tolerance of {tolerance:g}; nothing was written. Try another opset, or raise the tolerance if your use "
            "can bear it."
        )
    return difference


def max_difference(encoder: IdentityEncoder, path: str | Path, batches: Sequence[int] = (1, 3)) -> float:
    """Largest absolute difference between the embeddings of an exported file and those of the encoder.

    Args:
        encoder: what the file was made of.
        path: run by onnxruntime on the CPU.
        batches: how many random images to give at once, for each run.

    Raises:
        ImportError: a package is missing.
        ExportError: onnxruntime cannot run the file, or it gives another shape.
    """
    _check_packages()
    import onnxruntime

    generator = torch.Generator().manual_seed(0)
    given = [_random_images(batch, encoder.transform.size, generator) for batch in batches]
    with _on_cpu_in_eval(encoder):
        expected = [encoder.embed(encoder.transform.normalise(images)).numpy() for images in given]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        found = [session.run(["embeddings"], {"images": images.numpy()})[0] for images in given]
    except Exception as error:  # its errors have no common base
        raise ExportError(
            f"onnxruntime cannot run {Path(path).name}: {_first_line(error)}. Try another opset, and see that the "
            "encoder takes any number of images."
        ) from error
    for ours, theirs in zip(expected, found, strict=True):
        if theirs.shape != ours.shape:
            raise ExportError(f"{Path(path).name} gives {theirs.shape}, the encoder {ours.shape}. Export it again.")
    return float(np.max([np.abs(ours - theirs).max() for ours, theirs in zip(expected, found, strict=True)]))


def facts(path: str | Path) -> dict[str, str]:
    """Fact -> text, the metadata of an exported file. Numbers and lists are JSON: `json.loads(facts(path)["mean"])`."""
    _check_packages()
    import onnx

    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


class _Graph(nn.Module):
    """What is exported: from the bytes of images to embeddings."""

    def __init__(self, encoder: IdentityEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.encoder(self.encoder.transform.normalise(images)).float(), dim=1)


def _write(encoder: IdentityEncoder, file: Path, opset: int | None, metadata: dict[str, str]) -> None:
    """Export and save; the encoder is on the CPU and in eval mode."""
    import onnx

    model = _exported(encoder, opset)
    found = next(entry.version for entry in model.opset_import if not entry.domain)
    if opset is not None and found != opset:  # the exporter goes on when a conversion fails
        raise ExportError(f"torch exports this encoder with opset {found}, not {opset}. Ask for {found}, or none.")
    # The exporter notes the source line of every step, with the folders of this machine.
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del part.metadata_props[:]
    # Tracing loses the width.
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = encoder.embed_dim
    model.doc_string = f"{metadata['name']}: {metadata['input']} -> {metadata['output']}. {metadata['resizing']}"
    onnx.helper.set_model_props(model, metadata)
    size = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    onnx.save_model(
        model, str(file), save_as_external_data=size > LARGEST_FILE, location=f"{file.name}.data", size_threshold=1024
    )


def _exported(encoder: IdentityEncoder, opset: int | None) -> "ModelProto":
    """The encoder as a message that `onnx` saves.

    By torch.export, whose exporter knows no opset before 18 and was immature before it became torch's default in 2.9:
    2.6 fails at BatchNorm. Older ones are served by tracing, which follows the path of one example.
    """
    capture = _by_export if (opset is None or opset >= 18) and torch.__version__ >= "2.9" else _by_tracing
    # Two of them: torch.export takes a batch of one for a fixed number.
    example = torch.zeros(2, 3, *encoder.transform.size, dtype=torch.uint8)
    try:
        with _quiet("torch.onnx", "onnxscript", "onnx_ir"):
            return capture(_Graph(encoder).eval(), example, opset)
    except Exception as error:  # whatever the encoder's own code and the exporter run into
        reason = _first_line(error.__cause__ or error)
        raise ExportError(
            f"torch {torch.__version__} cannot export {type(encoder).__name__}: {reason}. Its forward must take any "
            "number of images and not branch on their values; another opset may help."
        ) from error


def _by_export(graph: _Graph, example: Tensor, opset: int | None) -> "ModelProto":
    program = torch.onnx.export(
        graph,
        (example,),
        input_names=["images"],
        output_names=["embeddings"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _by_tracing(graph: _Graph, example: Tensor, opset: int | None) -> "ModelProto":
    import onnx

    with TemporaryDirectory() as folder:
        file = Path(folder) / "traced.onnx"
        torch.onnx.export(
            graph,
            (example,),
            str(file),
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_axes={"images": {0: "batch"}, "embeddings": {0: "batch"}},
            opset_version=opset,
            dynamo=False,
        )
        return onnx.load(str(file))


def _facts(encoder: IdentityEncoder, card: Card | None) -> dict[str, str]:
    """Fact -> text, for the metadata of the file; what is not known is left out."""
    transform, threshold = encoder.transform, encoder.threshold
    height, width = transform.size
    metadata = {
        "input": f"images, uint8 (batch, 3, {height}, {width}), RGB",
        "output": f"embeddings, float32 (batch, {encoder.embed_dim}), of unit length: compare by dot product",
        "normalisation": "inside of the graph, by mean and std of values in [0, 1]",
        "resizing": f"Outside of the graph: resize the whole image to height {height} and width {width}, "
        f"antialiased, {transform.interpolation}.",
        "size": json.dumps([height, width]),
        "interpolation": transform.interpolation,
        "mean": json.dumps(list(transform.mean)),
        "std": json.dumps(list(transform.std)),
        "embed_dim": json.dumps(encoder.embed_dim),
    }
    if threshold is not None:
        metadata |= {
            "threshold": json.dumps(threshold.value),
            "threshold_meaning": "two images whose cosine similarity reaches it are called the same identity",
            "threshold_far": json.dumps(threshold.far),
            "threshold_frr": json.dumps(threshold.frr),
            "threshold_data": threshold.data,
        }
    for key in ("description", "category", "licence", "data_licence", "training_data"):
        metadata[key] = getattr(card, key, "")
    metadata["versions"] = json.dumps({name: _version(name) for name in ("instance-zoo", "torch", "timm", "onnx")})
    return {key: value for key, value in metadata.items() if value}


def _append(file: Path, metadata: dict[str, str]) -> None:
    """Add facts to a file and leave its graph untouched: protobuf merges messages that follow one another.

    Source: https://protobuf.dev/programming-guides/encoding/#last-one-wins
    """
    import onnx

    more = onnx.ModelProto()
    onnx.helper.set_model_props(more, metadata)
    with file.open("ab") as stream:
        stream.write(more.SerializeToString())
        stream.flush()
        os.fsync(stream.fileno())


def _random_images(batch: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(batch, 3, H, W) uint8 in 8 x 8 blocks of colour: noise of single pixels would look alike to an encoder."""
    blocks = torch.randint(0, 256, (batch, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return F.interpolate(blocks, size, mode="nearest")


@contextmanager
def _on_cpu_in_eval(encoder: IdentityEncoder) -> Iterator[None]:
    modes = [(module, module.training) for module in encoder.modules()]
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    encoder.eval().cpu()
    try:
        yield
    finally:
        encoder.to(device)
        for module, mode in modes:
            module.training = mode


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """No warnings, and none from these loggers, which report every step tried; what counts is checked afterwards."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(f"The ONNX export needs {', '.join(missing)}: pip install 'instance-zoo[onnx]'")


def _check_target(path: Path) -> None:
    if path.suffix != ".onnx":
        raise ExportError(f"{path} is not named *.onnx. Give the path of the file to write, such as pet.onnx.")
    if path.is_dir():
        raise ExportError(f"{path} is a folder. Give the path of the file to write.")
    if not path.parent.is_dir():
        raise ExportError(f"There is no folder {str(path.parent)!r} to write {path.name} to. Make it first.")


def _check_dtype(encoder: IdentityEncoder) -> None:
    kinds = {tensor.dtype for tensor in encoder.state_dict().values() if tensor.is_floating_point()}
    if kinds - {torch.float32}:
        types = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise ExportError(f"{type(encoder).__name__} holds weights in {types}. Export encoder.float().")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


def _first_line(error: BaseException) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
