"""The shelf: where a name, a folder or a hub id leads, and whether the files there are those of their card. Needs no
torch."""

import hashlib
import re
from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from zoo.cards.cardfile import CARD, Card, CardError, WeightFile
from zoo.home import home

WEIGHTS = "model.safetensors"
HEAD = "head.safetensors"

_HUB = re.compile(r"hf://(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_PICKLES = {".pth", ".pt", ".ckpt", ".bin", ".pkl", ".tar"}


def shelf() -> Path:
    """Folder of the components that come with the zoo: in the installed package, or beside a checkout's."""
    package = Path(__file__).resolve().parent.parent
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
    """Pull files of a hub repository into the zoo's `home`, or find them there.

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

    wanted: dict[str, Any] = {
        "repo_id": match["repo"],
        "revision": match["revision"],
        "cache_dir": home() / "hub",
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
                f"{hub_id} could not be pulled and is not in {home()}: {reason[0]}. Check the name, the "
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
        raise CardError(f"{path} {what}: {size:,} bytes, its card states {entry.size:,}. {remedy}")
    found = describe(path).sha256
    if found != entry.sha256:
        hashes = f"sha256 {found[:12]}…, its card states {entry.sha256[:12]}…"
        raise CardError(f"{path} was changed: {hashes}. {remedy}")
