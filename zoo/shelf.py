"""The shelf: cards, the files they vouch for, and where a name, folder or hub id leads. Needs no torch."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from datetime import date
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

import yaml

CARD = "card.yaml"
WEIGHTS = "model.safetensors"
HEAD = "head.safetensors"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_PICKLES = {".pth", ".pt", ".ckpt", ".bin", ".pkl", ".tar"}

T = TypeVar("T")


class CardError(ValueError):
    """A card, a name or a weights file that cannot be used; says what is wrong and what to do."""


# ---------------------------------------------------------------------- the card


@dataclass(frozen=True)
class WeightFile:
    """A file beside the card, and what its bytes must be.

    Args:
        file: plain file name that ends in .safetensors.
        sha256: hash of the whole file, 64 hex digits.
        size: length in bytes.
    """

    file: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Score:
    """One measurement.

    Args:
        dataset: what it was measured on, with the split.
        protocol: how: what is query, what is gallery, what is left out.
        date: day of the measurement, YYYY-MM-DD.
        values: metric -> value, such as {rank1: 0.93, mAP: 0.81}.
    """

    dataset: str
    protocol: str
    date: str
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a component, and all that is needed to build it again. Stored as `card.yaml`.

    Args:
        name: `<what>_<arch>.<data>`, such as pet_mobilenetv3s050.world.
        description: what the component tells apart, and where it fails.
        class_path: class to build, such as zoo.backbones.TimmEncoder; the key in the file is `class`.
        init: plain arguments of that class.
        transform: size, mean, std and interpolation of its input; null where it takes no images.
        weights: the weights file.
        extra: further weight files, such as a classification head.
        training_data: what it was trained on.
        data_licence: licence of the training data.
        licence: licence of the weights.
        source: hub id `user/repo[@revision]` where the weights live when they are not beside the card.
        scores: measurements.
        recipe: the command that made it.
        versions: package -> version at the time.
    """

    name: str
    description: str = ""
    class_path: str
    init: dict[str, Any] = field(default_factory=dict)
    transform: dict[str, Any] | None = None
    weights: WeightFile
    extra: list[WeightFile] = field(default_factory=list)
    training_data: str = ""
    data_licence: str = ""
    licence: str = ""
    source: str | None = None
    scores: list[Score] = field(default_factory=list)
    recipe: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[WeightFile]:
        """Every file that the card vouches for."""
        return [self.weights, *self.extra]

    @classmethod
    def from_dict(cls, entries: Any, where: str = CARD) -> "Card":
        """A card from the mapping in a file.

        Args:
            entries: the parsed YAML.
            where: the file, for error messages.

        Raises:
            CardError: a key missing, unknown or of the wrong kind.
        """
        card = _parse(cls, entries, where)
        if not _NAME.fullmatch(card.name):
            raise CardError(
                f"{where}: name {card.name!r} cannot be a folder's name. Use letters, digits and . _ + -, "
                "such as pet_resnet50.petface."
            )
        plain(card.init, f"{where}: init")
        for weights in card.files:
            _check_weight_file(weights, where)
        return card

    @classmethod
    def read(cls, path: Path) -> "Card":
        """The card in a file.

        Raises:
            CardError: not YAML, or not a card.
        """
        try:
            return cls.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CardError(f"{path} is not YAML: {error}. Correct it, or save it again.") from error

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_dict` reads; plain values only."""
        return {_KEYS.get(key, key): value for key, value in plain(asdict(self), "card").items()}

    def write(self, path: Path) -> None:
        """Write the card as YAML, in the order of its fields."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, allow_unicode=True, width=110)
        path.write_text(text, encoding="utf-8")


_KEYS = {"class_path": "class"}  # `class` is a keyword of Python


def plain(value: Any, where: str) -> Any:
    """A copy made of mappings, lists, strings, numbers, booleans and null alone; tuples become lists.

    Raises:
        CardError: anything else, which a card cannot hold.
    """
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise CardError(
        f"{where} is {value!r} ({type(value).__name__}), which a card cannot hold. Use text, numbers, "
        "booleans, null, and lists or mappings of these."
    )


def _parse(kind: type[T], entries: Any, where: str) -> T:
    """A dataclass from a mapping, with every key and its kind checked."""
    if not isinstance(entries, Mapping):
        raise CardError(f"{where} holds {entries!r} where a mapping is due. Write `key: value` lines.")
    known: dict[str, Field[Any]] = {_KEYS.get(f.name, f.name): f for f in fields(kind)}  # type: ignore[arg-type]
    for key in entries:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
            raise CardError(f"{where}: unknown key {key!r}. {hint}")
    missing = [k for k, f in known.items() if k not in entries and f.default is f.default_factory is MISSING]
    if missing:
        raise CardError(f"{where}: missing key {missing[0]!r}. Add it: {', '.join(missing)} must be given.")
    return kind(**{known[k].name: _value(known[k].type, v, f"{where}: {k}") for k, v in entries.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    """One value of a card, parsed further where it is a dataclass or a list of them."""
    if kind is WeightFile:
        return _parse(WeightFile, value, where)
    if isinstance(value, date) and kind is str:  # YAML reads an unquoted 2026-01-31 as a date
        return value.isoformat()
    allowed = [get_origin(k) or k for k in (get_args(kind) if isinstance(kind, UnionType) else [kind])]
    fits: bool = isinstance(value, tuple(allowed))
    if not fits:
        wanted = " or ".join(k.__name__ for k in allowed)
        raise CardError(f"{where} is {value!r} ({type(value).__name__}); it must be {wanted}.")
    if get_origin(kind) is list:
        return [_parse(get_args(kind)[0], entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if kind == dict[str, float]:
        return {metric: _number(number, f"{where}.{metric}") for metric, number in value.items()}
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, str | bool) or not hasattr(value, "__float__"):
        raise CardError(f"{where} is {value!r}, not a number. Give a number, such as 0.93.")
    return float(value)  # also of a tensor or a numpy scalar, as metrics return them


def _check_weight_file(weights: WeightFile, where: str) -> None:
    """A card from elsewhere must not lead out of its own folder, nor to a pickle."""
    if not _NAME.fullmatch(weights.file) or not weights.file.endswith(".safetensors"):
        raise CardError(
            f"{where}: weights file {weights.file!r} is not a plain .safetensors file name. Name a file "
            "beside the card; other formats are converted by `python -m recipes.zoo convert`."
        )
    if not re.fullmatch("[0-9a-f]{64}", weights.sha256):
        raise CardError(f"{where}: sha256 {weights.sha256!r} is no hash. It has 64 lower-case hex digits.")


# ---------------------------------------------------------------------- names, folders, hub ids


def shelf() -> Path:
    """Folder of the components that come with the zoo: in the installed package, or beside a checkout's."""
    package = Path(__file__).resolve().parent
    installed, checkout = package / "checkpoints", package.parent / "checkpoints"
    # Beside an installed package lies site-packages, where a folder `checkpoints` would be somebody else's.
    return checkout if not installed.is_dir() and (package.parent / "pyproject.toml").is_file() else installed


def list_models(pattern: str = "*") -> list[str]:
    """Names on the shelf, sorted.

    Args:
        pattern: keep the names that match it; `*` stands for anything, as in "pet_*".
    """
    names = (path.parent.name for path in shelf().glob(f"[!.]*/{CARD}"))
    return sorted(name for name in names if fnmatchcase(name, pattern))


def card(where: str | Path) -> Card:
    """The card of a component; its weights are not touched.

    Args:
        where: a name on the shelf, a folder, or a hub id `hf://user/repo[@revision]`.

    Raises:
        CardError: nothing there, or not a card.
    """
    return Card.read(locate(where, [CARD]) / CARD)


def locate(where: str | Path, files: Iterable[str] = (CARD, "*.safetensors")) -> Path:
    """The folder of a component. A name on the shelf beats a folder of that name; `./name` is the folder.

    Args:
        where: a name on the shelf, a folder, or a hub id `hf://user/repo[@revision]`.
        files: patterns of what to pull when it is a hub id.

    Raises:
        CardError: nothing there, or something that is not a component's folder.
    """
    text = str(where)
    if isinstance(where, str) and where.startswith("hf:"):
        folder = pull(where, files)
    elif isinstance(where, str) and where in list_models():
        folder = shelf() / where
    else:
        folder = Path(where).expanduser()
        if folder.suffix in _PICKLES and not folder.is_dir():
            raise CardError(
                f"{text!r} is no component's folder, and weights are never read from a pickle. Convert it "
                f"once: `python -m recipes.zoo convert {text} --class zoo.backbones.TimmEncoder --init "
                "backbone=... --out FOLDER`, then load FOLDER."
            )
        if folder.is_file():
            raise CardError(f"{text!r} is a file. Point at the folder that holds it and its {CARD}.")
        if not folder.is_dir():
            raise CardError(_not_found(text, folder))
    if not (folder / CARD).is_file():
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise CardError(
            f"{text!r} has no {CARD}; it holds {held}. Point at a folder that `zoo.save` wrote, or convert "
            "foreign weights with `python -m recipes.zoo convert`."
        )
    return folder


def _not_found(text: str, folder: Path) -> str:
    kept = sorted(folder.parent.glob(f".{folder.name}.*.earlier"))
    if kept:
        return f"{text!r} is missing: a save was killed as it swapped folders. Rename {kept[-1]} back to it."
    if re.search(r"[/\\]", text):
        hub = f" For a model on the hub, write hf://{text}." if _HUB.fullmatch(f"hf://{text}") else ""
        return f"There is no folder {text!r}. Check the path.{hub}"
    names = list_models()
    near = get_close_matches(text, names, n=3, cutoff=0.4)
    hint = f"Did you mean {', '.join(near)}?" if near else f"On the shelf: {', '.join(names) or 'nothing'}."
    return f"Unknown model {text!r}. {hint} A folder of your own is given by its path, a hub id as hf://user/repo."


def pull(hub_id: str, files: Iterable[str]) -> Path:
    """Pull files of a hub repository into `$INSTANCE_ZOO_HOME` (~/.cache/instance_zoo), or find them there.

    Args:
        hub_id: `hf://user/repo[@revision]`.
        files: patterns of the files to pull; nothing else is touched.

    Raises:
        CardError: not a hub id, or neither the hub nor a cached copy can be had.
    """
    match = _HUB.fullmatch(hub_id)
    if match is None:
        raise CardError(f"{hub_id!r} is not a hub id. Write hf://user/repo or hf://user/repo@revision.")
    from huggingface_hub import snapshot_download

    home = Path(os.environ.get("INSTANCE_ZOO_HOME") or "~/.cache/instance_zoo").expanduser()
    wanted: dict[str, Any] = {
        "repo_id": match["repo"],
        "revision": match["revision"],
        "cache_dir": home / "hub",
        "allow_patterns": list(files),
    }
    try:
        return Path(snapshot_download(**wanted))
    except Exception as error:  # the client lets errors of its HTTP library through: no common base
        try:
            return Path(snapshot_download(**wanted, local_files_only=True))
        except Exception:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CardError(
                f"{hub_id} could not be pulled and is not in {home}: {reason[0]}. Check the name, the "
                "revision, the network and, for a private repository, `hf auth login`; or copy the folder "
                "here and give its path."
            ) from error


# ---------------------------------------------------------------------- verification


def verified_files(card: Card, folder: Path) -> dict[str, Path]:
    """File name -> path of every file that the card lists, with size and hash checked.

    Files that are not beside the card are pulled from its `source`.

    Args:
        card: what the files must be.
        folder: where the card lies.

    Raises:
        CardError: a file that is missing, truncated or changed.
    """
    here = {entry.file: folder / entry.file for entry in card.files}
    absent = [name for name, path in here.items() if not path.is_file()]
    if absent and card.source is not None:
        pulled = pull(f"hf://{card.source.removeprefix('hf://')}", absent)
        here |= {name: pulled / name for name in absent}
    for entry in card.files:
        _verify(entry, here[entry.file])
    return here


def describe(path: Path) -> WeightFile:
    """The entry of a card that vouches for a file."""
    with path.open("rb") as stream:
        return WeightFile(path.name, hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size)


def _verify(entry: WeightFile, path: Path) -> None:
    remedy = (
        "Fetch the folder again (delete it first when it is a cache); "
        "if the weights were changed on purpose, save the component anew with `zoo.save`."
    )
    if not path.is_file():
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.safetensors"))) or "no such file"
        raise CardError(
            f"The weights {entry.file!r} are missing from {path.parent}, which holds {others}. Put the file "
            "back under the name that the card gives, or fetch the folder again."
        )
    size = path.stat().st_size
    if size != entry.size:
        what = "is truncated" if size < entry.size else "is not the file of its card"
        raise CardError(f"{path} {what}: {size:,} bytes, its card says {entry.size:,}. {remedy}")
    found = describe(path).sha256
    if found != entry.sha256:
        hashes = f"sha256 {found[:12]}…, its card says {entry.sha256[:12]}…"
        raise CardError(f"{path} was changed: {hashes}. {remedy}")
