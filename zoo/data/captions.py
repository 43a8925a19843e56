"""Images with captions, in the layout of COCO: ``annotations/captions_{split}.json`` and a folder of images a split."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.data.files import Files, text_of


@dataclass(frozen=True)
class Captions:
    """Images of a split with their captions.

    Args:
        root: folder that the paths are relative to.
        split: its name as the file has it, e.g. ``train2017``.
        paths: posix paths of the images, in the order of the file.
        texts: captions of each image, at least one.
    """

    root: Path
    split: str
    paths: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.paths)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Path and caption, one pair for each caption."""
        for path, texts in zip(self.paths, self.texts, strict=True):
            for text in texts:
                yield path, text


def read_captions(root: Path, split: str, name: str = "captions") -> Captions:
    """The images of a split with their captions.

    Fits COCO (Lin et al., ECCV 2014) as it is published, whose splits bear a year, and the rendered scenes of
    `zoo.world.Scenes`. Images may lie in ``{split}/``, ``images/{split}/``, ``images/`` or in `root` itself.
    Images that are not on disk and those without a caption are left out, counted and named in a warning.

    Args:
        root: folder that holds ``annotations``.
        split: ``train`` finds ``captions_train.json``, else the only one of ``captions_train*.json``.
        name: what the file's name begins with; the rendered scenes have ``sentences``, too.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: several files fit, it is no list of captions, or no image is left.
    """
    file = _find(Path(root), split, name)
    table = _table(file)
    split = file.stem.removeprefix(f"{name}_")
    files = Files(Path(root))
    captions_of: dict[object, list[str]] = {image["id"]: [] for image in table["images"]}
    for row in table["annotations"]:
        if row["image_id"] not in captions_of:
            files.skip("captions of images that are not listed", row["image_id"])
        elif text := " ".join(str(row["caption"]).split()):
            captions_of[row["image_id"]].append(text)
    chosen: dict[str, tuple[str, ...]] = {}
    for image in table["images"]:
        places = (f"{split}/", f"images/{split}/", "images/", "")
        path = next((p + image["file_name"] for p in places if p + image["file_name"] in files), None)
        if image["id"] not in captions_of:
            files.skip("images that are listed again", image["file_name"])
        elif path is None:
            files.skip("images that are not on disk", image["file_name"])
        elif not captions_of[image["id"]]:
            files.skip("images without a caption", image["file_name"])
        else:
            chosen[path] = (*chosen.get(path, ()), *captions_of[image["id"]])
        captions_of.pop(image["id"], None)
    files.report_skipped()
    if not chosen:
        raise ValueError(f"{file} leaves no image with a caption under {root}. Put the images into {root}/{split}.")
    return Captions(Path(root), split, tuple(chosen), tuple(chosen.values()))


def _find(root: Path, split: str, name: str) -> Path:
    """The file of a split's captions.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: several files fit.
    """
    folder = root / "annotations"
    if not folder.is_dir():
        raise FileNotFoundError(f"{root} has no folder annotations. Give the folder that holds annotations and images.")
    exact = folder / f"{name}_{split}.json"
    if exact.is_file():
        return exact
    found = sorted(folder.glob(f"{name}_{split}[0-9]*.json"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.stem.removeprefix(f"{name}_") for path in found)
        raise ValueError(f"{folder} has {len(found)} files that fit the split {split!r}: {names}. Name one of them.")
    known = ", ".join(sorted(path.name for path in folder.glob("*.json"))) or "none"
    raise FileNotFoundError(f"No file {exact}. Files there: {known}.")


def _table(file: Path) -> dict[str, Any]:
    """A file's images and annotations.

    Raises:
        ValueError: it is not JSON, or its keys are not those of captions.
    """
    try:
        table = json.loads(text_of(file))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}. Get it again.") from error
    wanted = {"images": ("id", "file_name"), "annotations": ("image_id", "caption")}
    for part, keys in wanted.items():
        rows = table.get(part) if isinstance(table, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"{file} has no list {part!r}. Give COCO captions.")
        for row in rows:
            missing = [key for key in keys if not isinstance(row, dict) or key not in row]
            if missing:
                raise ValueError(f"{file}: an entry of {part!r} has no {', '.join(missing)}. Give COCO captions.")
    return table
