"""From a name to a module and back: what cards describe is built, filled, saved and shared."""

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from zoo.cards.cardfile import CARD, Card, CardError, Score, plain
from zoo.cards.registry import class_path_of, resolve
from zoo.cards.shelf import HEAD, WEIGHTS, describe, locate, verified_files

if TYPE_CHECKING:  # reading a card must not cost the seconds that torch takes to import
    import torch
    from torch import Tensor, nn

    from zoo.module import ZooModule

# ---------------------------------------------------------------------- loading


def load(where: str | Path, *, device: "str | torch.device" = "cpu") -> "ZooModule":
    """A component, ready for inference: verified, built, strictly filled with its weights, in eval mode.

    Args:
        where: a name on the shelf, a folder, or a hub id `hf://user/repo[@revision]`.
        device: where to put it.

    Raises:
        CardError: anything missing, changed or ill-fitting; nothing is built before every hash is verified.
    """
    card, files = _open(where)
    module = build(card)
    _check_frozen(module, card)
    fill(module, _read(files[card.weights.file]), card.name)
    if card.threshold is not None:
        module.threshold = card.threshold  # type: ignore[assignment]
    return module.eval().to(device)


def load_tensors(where: str | Path, file: str = HEAD) -> "dict[str, Tensor]":
    """The tensors of one of a component's files, verified; by default its classification head.

    Args:
        where: a name on the shelf, a folder, or a hub id `hf://user/repo[@revision]`.
        file: name of the file.

    Raises:
        CardError: the card lists no such file, or its bytes are not those of the card.
    """
    card, files = _open(where)
    if file not in files:
        raise CardError(f"{card.name} has no {file!r}, only {', '.join(files)}. Give `save` a head.")
    return _read(files[file])


def verify(where: str | Path) -> Card:
    """Check size and hash of every file of a component, building nothing; returns its card.

    Args:
        where: a name on the shelf, a folder, or a hub id `hf://user/repo[@revision]`.

    Raises:
        CardError: a file missing, truncated or changed.
    """
    return _open(where)[0]


def _open(where: str | Path) -> tuple[Card, dict[str, Path]]:
    folder = locate(where)
    card = Card.read(folder / CARD)
    return card, verified_files(card, folder)


def _read(path: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CardError(f"{path} is not a safetensors file: {error}. Save the component again.") from error


def build(card: Card) -> "ZooModule":
    """What a card describes, with fresh weights, on the CPU. The caller's random state is left as it was.

    Raises:
        CardError: the class is refused, or does not take these arguments; the transform does not.
    """
    import torch

    from zoo.transforms import Transform

    cls = resolve(card.class_path)
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            module = cls.from_init_args(plain(card.init, "init"))
            module.configure_model()  # where a module with large parts makes them
    except Exception as error:  # whatever a constructor makes of foreign values
        raise CardError(
            f"{card.class_path} cannot be built with {card.init}: {error}. Correct `init` in the card, or "
            "update instance-zoo when the card is newer."
        ) from error
    if card.transform is not None:
        values: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in card.transform.items()}
        try:
            module.transform = Transform(**values)  # type: ignore[assignment]
        except TypeError as error:
            raise CardError(f"{card.name}: transform {values} is refused: {error}. Correct it.") from error
    return module


def _check_frozen(module: "ZooModule", card: Card) -> None:
    """
    Raises:
        CardError: a part that the weights file leaves out is not the one that the component was trained with.
    """
    found = module.frozen_hashes()
    for part in dict.fromkeys([*card.frozen, *found]):
        if card.frozen.get(part) != found.get(part):
            hashes = [hash[:12] if hash else "none" for hash in (card.frozen.get(part), found.get(part))]
            raise CardError(
                f"{card.name} was trained with another {part!r} than `init` in its card names: that had the hash "
                f"{hashes[0]}, this has {hashes[1]}. Put the one back that it was trained with."
            )


def fill(module: "nn.Module", tensors: "Mapping[str, Tensor]", name: str) -> None:
    """Load tensors into a module, strictly: every one must have its place, shape and dtype kept.

    Args:
        module: what to fill; of a component of the zoo, at least its `component_state`.
        tensors: its state dict.
        name: of the component, for messages.

    Raises:
        CardError: tensors missing, left over or of another shape.
    """
    from zoo.module import ZooModule

    everything = module.state_dict(keep_vars=True)
    own = module.component_state() if isinstance(module, ZooModule) else everything
    complaints = {
        "missing": [key for key in own if key not in tensors],
        "unexpected": [key for key in tensors if key not in everything],
        "of another shape": [
            f"{key} {tuple(tensors[key].shape)} for {tuple(everything[key].shape)}"
            for key in everything
            if key in tensors and tensors[key].shape != everything[key].shape
        ],
    }
    if any(complaints.values()):
        misfits = "; ".join(f"{len(keys)} {what}: {_first(keys)}" for what, keys in complaints.items() if keys)
        raise CardError(
            f"The weights of {name} do not fit {type(module).__name__}. {misfits}. Build it with the arguments "
            "that the weights were made with (`init` in the card)."
        )
    if len(own) == len(everything):
        _adopt_dtype(module, tensors)
        everything = module.state_dict(keep_vars=True)
    for key, tensor in tensors.items():
        if everything[key].dtype != tensor.dtype:
            everything[key].data = everything[key].data.to(tensor.dtype)
    module.load_state_dict(dict(tensors), strict=len(own) == len(everything))
    if isinstance(module, ZooModule):
        module.on_filled(tensors)


def _adopt_dtype(module: "nn.Module", tensors: "Mapping[str, Tensor]") -> None:
    """Give the module the one dtype of its weights: `load_state_dict` would convert the weights instead."""
    own = {key: tensor for key, tensor in module.state_dict().items() if tensor.is_floating_point()}
    before, after = {t.dtype for t in own.values()}, {tensors[key].dtype for key in own}
    if len(after) == 1 and before != after:
        module.to(after.pop())  # as `.to(dtype)` before saving: it reached buffers outside the state, too


def _first(keys: list[str], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


# ---------------------------------------------------------------------- saving


def save(
    module: "ZooModule",
    folder: str | Path,
    *,
    name: str | None = None,
    head: "Mapping[str, Tensor] | nn.Module | None" = None,
    overwrite: bool = False,
    description: str = "",
    category: str = "",
    training_data: str = "",
    data_licence: str = "",
    licence: str = "",
    source: str | None = None,
    scores: Iterable[Score | Mapping[str, Any]] = (),
    recipe: str = "",
) -> Card:
    """Save a component to a folder that `load` reads: card.yaml, model.safetensors, perhaps head.safetensors.

    All or nothing: written beside the folder, loaded back once, then renamed. Whatever fails on the way, an
    earlier folder stays as it was. In a distributed run, call it on one rank.

    Args:
        module: of a class that `resolve` finds.
        folder: where to.
        name: of the component; by default the folder's name.
        head: classification head to keep beside the weights.
        overwrite: replace an earlier component in that folder.
        description: what the component tells apart, and where it fails.
        category: an entry of `zoo.categories`.
        training_data: what it was trained on.
        data_licence: licence of the training data.
        licence: licence of the weights.
        source: hub id where the weights are going to live.
        scores: measurements, each a `Score` or a mapping of its fields.
        recipe: the command that made it.

    Raises:
        CardError: a module that a card cannot describe, a folder in use, or a write that failed.
    """
    folder = Path(folder).expanduser().absolute()
    _check_target(folder, overwrite)
    class_path = class_path_of(type(module))
    if resolve(class_path) is not type(module):
        raise CardError(f"{class_path!r} is another class than this module's by now. Register it again.")
    transform, threshold = getattr(module, "transform", None), getattr(module, "threshold", None)
    entries = {
        "name": folder.name if name is None else name,
        "class": class_path,
        "init": plain(module.init_args(), f"{class_path}.init_args()"),
        "transform": None if transform is None else plain(asdict(transform), "transform"),
        "threshold": None if threshold is None else asdict(threshold),
        "frozen": module.frozen_hashes(),
        "description": description,
        "category": category,
        "training_data": training_data,
        "data_licence": data_licence,
        "licence": licence,
        "source": source,
        "scores": [asdict(score) if isinstance(score, Score) else score for score in scores],
        "recipe": recipe,
        "versions": _versions(),
    }
    tensors = {WEIGHTS: _storable(module.component_state(), class_path)}
    if head is not None:
        tensors[HEAD] = _storable(head if isinstance(head, Mapping) else head.state_dict(), "head")
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.part")
    try:
        card = _write(temporary, entries, tensors)
        _check_buffers(module, load(temporary))
        _swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return card


def push(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Verify a folder and upload its card and weights to a hub; returns the `hf://` id to load it by.

    Args:
        folder: what `save` wrote.
        repo_id: user/repo; created if it does not exist.
        private: whether a new repository is private.

    Raises:
        CardError: the folder is not in order; nothing is uploaded.
    """
    from huggingface_hub import HfApi

    card = verify(Path(folder))
    resolve(card.class_path)
    hub = HfApi()
    hub.create_repo(repo_id, private=private, exist_ok=True)
    commit = hub.upload_folder(
        repo_id=repo_id,
        folder_path=Path(folder).expanduser(),
        allow_patterns=[CARD, *(entry.file for entry in card.files)],
        commit_message=f"{card.name}",
    )
    return f"hf://{repo_id}@{commit.oid}"


def _check_target(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise CardError(f"{folder} exists. Choose another folder, or pass overwrite=True to replace it.")
    if not folder.is_dir():
        raise CardError(f"{folder} is a file, not a component's folder. Choose another place.")
    foreign = [p.name for p in folder.iterdir() if p.name != CARD and p.suffix != ".safetensors"]
    if foreign or not (folder / CARD).is_file():
        raise CardError(
            f"{folder} holds more than a component ({_first(foreign) or 'no ' + CARD}), and replacing it "
            "would delete that. Choose another folder, or move those files away."
        )


def _storable(tensors: "Mapping[str, Any]", what: str) -> "dict[str, Tensor]":
    """Contiguous tensors on the CPU, no two in the same memory.

    safetensors keeps neither strides nor sharing. Tied weights are written under each of their names, so that
    strict loading needs to know nothing of ties.
    """
    import torch

    stored: dict[str, torch.Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise CardError(
                f"{name!r} of {what} is a {type(tensor).__name__}, and a weights file holds tensors only. "
                "Move it into init_args(), or register it as a buffer."
            )
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            kind = "meta" if tensor.is_meta else "quantised" if tensor.is_quantized else str(tensor.layout)
            raise CardError(f"{name!r} of {what} is a {kind} tensor, which cannot be stored. Make it dense.")
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if address in memory else tensor
        memory.add(address)
    return stored


def _write(folder: Path, entries: dict[str, Any], tensors: "dict[str, dict[str, Tensor]]") -> Card:
    """Write weights and card, down to the disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        folder.mkdir(parents=True)
        for file, state in tensors.items():
            save_file(state, folder / file, metadata={"format": "pt"})
        weights, *extra = (asdict(describe(folder / file)) for file in tensors)
        card = Card.from_dict(entries | {"weights": weights, "extra": extra})
        card.write(folder / CARD)
        for path in folder.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    except (OSError, SafetensorError) as error:
        raise CardError(
            f"{folder.parent} could not be written to: {error}. Make room or choose another place; nothing "
            "there was changed."
        ) from error
    return card


def _check_buffers(module: "nn.Module", again: "nn.Module") -> None:
    """What is outside the state dict must come from `init_args` alone, else a loaded module would differ."""
    saved, rebuilt = module.state_dict(), dict(again.named_buffers())
    for name, buffer in module.named_buffers():
        other = rebuilt.get(name)
        if name in saved or other is None or other.shape != buffer.shape:  # caches grow with use
            continue
        if buffer.dtype != other.dtype or not buffer.cpu().equal(other):
            raise CardError(
                f"Buffer {name!r} of {type(module).__name__} is not persistent, and init_args() do not build "
                "it again: a loaded copy would differ. Register it with persistent=True."
            )


def _swap(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`. Killed between the two renames, the earlier one is beside it."""
    earlier = new.with_suffix(".earlier")
    occupied = folder.exists() and any(folder.iterdir())
    if occupied:
        folder.rename(earlier)
    try:
        new.rename(folder)
    except OSError as error:
        if occupied:
            with contextlib.suppress(OSError):
                earlier.rename(folder)
        raise CardError(f"{folder} could not be replaced: {error}. The earlier one was kept.") from error
    shutil.rmtree(earlier, ignore_errors=True)


def _versions() -> dict[str, str]:
    import torch

    import zoo

    versions = {"instance-zoo": zoo.__version__, "torch": str(torch.__version__)}
    for package in ("timm", "transformers", "lightning"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions | {"python": python_version()}
