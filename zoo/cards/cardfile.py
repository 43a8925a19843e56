"""The card of a component, and how `card.yaml` is read and written. Needs no torch."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

import yaml

CARD = "card.yaml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

T = TypeVar("T")


class CardError(ValueError):
    """A card, a name or a weights file that cannot be used; the message names the problem and the remedy."""


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


@dataclass(frozen=True)
class Threshold:
    """From which cosine similarity on two images are called the same identity.

    Args:
        value: the similarity.
        far: share of the pairs of two identities that reach it (false acceptance rate), where it was chosen.
        frr: share of the pairs of one identity that do not (false rejection rate), there.
        data: what it was chosen on.
    """

    value: float
    far: float
    frr: float
    data: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a component, and all that is needed to build it again. Stored as `card.yaml`.

    Args:
        name: `<what>_<arch>.<data>`, such as pet_mobilenetv3s050.world.
        description: what the component tells apart, and where it fails.
        category: an entry of `zoo.categories`; "" for none in particular.
        class_path: class to build, such as zoo.backbones.TimmEncoder; the key in the file is `class`.
        init: plain arguments of that class.
        transform: size, mean, std and interpolation of its input; null where it takes no images.
        threshold: from which similarity on two images are called the same; null where it was not calibrated.
        weights: the weights file.
        extra: further weight files, such as a classification head.
        frozen: part that is in none of these files, such as the base model that adapters belong to -> hash of it; what
            `init` names in its place must have this hash.
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
    category: str = ""
    class_path: str
    init: dict[str, Any] = field(default_factory=dict)
    transform: dict[str, Any] | None = None
    threshold: Threshold | None = None
    weights: WeightFile
    extra: list[WeightFile] = field(default_factory=list)
    frozen: dict[str, str] = field(default_factory=dict)
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
        """The mapping that `from_dict` reads; plain values only, `frozen` where there is anything."""
        entries = plain(asdict(self), "card").items()
        return {_KEYS.get(key, key): value for key, value in entries if value or key != "frozen"}

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
    if kind == Threshold | None and isinstance(value, Mapping):
        return _parse(Threshold, value, where)
    if isinstance(value, date) and kind is str:  # YAML reads an unquoted 2026-01-31 as a date
        return value.isoformat()
    allowed = [get_origin(k) or k for k in (get_args(kind) if isinstance(kind, UnionType) else [kind])]
    fits: bool = isinstance(value, tuple(allowed))
    if not fits:
        wanted = " or ".join(k.__name__ for k in allowed)
        raise CardError(f"{where} is {value!r} ({type(value).__name__}); it must be {wanted}.")
    if get_origin(kind) is list:
        return [_parse(get_args(kind)[0], entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if kind is float:
        return _number(value, where)
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
