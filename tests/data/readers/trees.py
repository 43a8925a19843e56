"""Tiny trees in exactly the published layouts, of empty files: readers do not open images."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np


def touch(root: Path, paths: Iterable[str]) -> None:
    """Empty files, and the folders that they are in."""
    folders, first = set(), None
    for path in paths:
        folder = root / path.rpartition("/")[0]
        if folder not in folders:
            folder.mkdir(parents=True, exist_ok=True)
            folders.add(folder)
        if first is None:
            first = f"{root}/{path}"
            Path(first).touch()
        elif not os.path.exists(f"{root}/{path}"):
            os.link(first, f"{root}/{path}")  # many times faster than another file


def write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def market1501(root: Path) -> None:
    top = "Market-1501-v15.09.15"
    touch(root, (f"{top}/bounding_box_train/{i:04d}_c{c}s1_000{i}51_00.jpg" for i in (2, 7, 10, 11) for c in (1, 2, 6)))
    touch(root, (f"{top}/query/{i:04d}_c1s1_001051_00.jpg" for i in (1, 3)))
    touch(root, (f"{top}/bounding_box_test/{i:04d}_c{c}s3_001051_0{c}.jpg" for i in (1, 3) for c in (1, 4)))
    touch(root, (f"{top}/bounding_box_test/{name}" for name in ("-1_c1s1_000401_03.jpg", "0000_c2s1_000151_01.jpg")))
    touch(root, [f"{top}/bounding_box_train/Thumbs.db", f"{top}/readme.txt"])


def msmt17(root: Path) -> None:
    lists = {
        "train": [(0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 1, 15), (2, 0, 3), (2, 1, 4)],
        "val": [(0, 2, 5), (1, 2, 6), (2, 2, 7)],
        "query": [(0, 0, 1), (1, 0, 2)],
        "gallery": [(0, 1, 3), (1, 1, 4), (2, 0, 5)],
    }
    for name, images in lists.items():
        paths = [f"{i:04d}/{i:04d}_{k:03d}_{c:02d}_0303morning_0015_{k}.jpg" for i, k, c in images]
        write(root / f"MSMT17_V1/list_{name}.txt", (f"{p} {i}" for p, (i, _, _) in zip(paths, images, strict=True)))
        touch(root / "MSMT17_V1" / ("train" if name in ("train", "val") else "test"), paths)


def cuhk03(root: Path) -> None:
    from scipy.io import savemat

    names = [f"{p}_{i:03d}_{v}_{k:02d}.png" for p in (1, 2) for i in (1, 2) for v, k in ((1, 1), (1, 2), (2, 6))]
    labels = [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    parts = {"train_idx": [1, 2, 3, 7, 8, 9], "query_idx": [4, 10], "gallery_idx": [5, 6, 11, 12]}  # from 1
    for boxes in ("detected", "labeled"):
        touch(root, (f"images_{boxes}/{name}" for name in names))
        columns = {key: np.array(rows, dtype=float)[:, None] for key, rows in (parts | {"labels": labels}).items()}
        columns["filelist"] = np.array(names, dtype=object)[:, None]
        savemat(root / f"cuhk03_new_protocol_config_{boxes}.mat", columns)


def lpw(root: Path) -> None:
    people = {"scen1": (1, 2), "scen2": (1, 2), "scen3": (1,)}
    views = {"scen1": (1, 2, 3), "scen2": (1, 4), "scen3": (1, 2)}
    touch(
        root,
        (
            f"pep_256x128/{scene}/view{view}/{person}/{image:04d}.jpg"
            for scene in people
            for view in views[scene]
            for person in people[scene]
            for image in (1, 2)
        ),
    )


def prcc(root: Path) -> None:
    for part, number in (("train", 1), ("val", 2)):
        people = (f"{i:03d}/{letter}_cropped_rgb{number:03d}.jpg" for i in (1, 2, 4) for letter in "ABC")
        touch(root / "prcc/rgb" / part, people)
    touch(root / "prcc/rgb/test", (f"{letter}/{i:03d}/cropped_rgb001.jpg" for letter in "ABC" for i in (34, 35)))


def rstpreid(root: Path) -> None:
    people = {0: "train", 1: "train", 7: "val", 9: "test"}
    entries = [
        {"id": i, "img_path": f"{i:04d}_c{c}_00{c:02d}.jpg", "captions": ["A man.", "He walks."], "split": split}
        for i, split in people.items()
        for c in (1, 14)
    ]
    touch(root / "RSTPReid/imgs", (str(entry["img_path"]) for entry in entries))
    (root / "RSTPReid/data_captions.json").write_text(json.dumps(entries))


def vggface2(root: Path) -> None:
    touch(root, (f"train/n{i:06d}/{k:04d}_0{f}.jpg" for i in (2, 3, 4) for k, f in ((1, 1), (1, 2), (3, 1))))
    touch(root, (f"test/n{i:06d}/{k:04d}_01.jpg" for i in (1, 9) for k in (1, 2)))


def lfw(root: Path) -> None:
    people = {"Abel_Pacheco": 4, "Akhmed_Zakayev": 3, "Slobodan_Milosevic": 3}
    touch(root / "lfw", (f"{name}/{name}_{k:04d}.jpg" for name, count in people.items() for k in range(1, count + 1)))
    write(
        root / "pairs.txt",
        [
            "2\t2",
            "Abel_Pacheco\t1\t4",
            "Akhmed_Zakayev\t1\t3",
            "Abel_Pacheco\t1\tAkhmed_Zakayev\t1",
            "Akhmed_Zakayev\t2\tSlobodan_Milosevic\t3",
            "Slobodan_Milosevic\t2\t3",
            "Abel_Pacheco\t2\t3",
            "Slobodan_Milosevic\t1\tAbel_Pacheco\t4",
            "Akhmed_Zakayev\t3\tAbel_Pacheco\t2",
        ],
    )


def petface(root: Path) -> None:
    for family in ("cat", "dog"):
        train = [(i, k) for i in (0, 1, 2) for k in (0, 1)]
        held = {"val": [(10, 0), (10, 1)], "test": [(20, 0), (20, 1), (21, 0)], "reidentification": [(0, 2), (2, 2)]}
        parts = {"train": train, **held}
        paths = {part: [f"{family}/{i:06d}/{k:02d}.png" for i, k in images] for part, images in parts.items()}
        touch(root / "images", (path for part in paths.values() for path in part))
        folder = root / "split" / family
        for part in ("train", "reidentification"):
            labels = [i for i, _ in parts[part]]
            lines = (f"{path},{label}" for path, label in zip(paths[part], labels, strict=True))
            write(folder / f"{part}.csv", ["filename,label", *lines])
        for part in ("val", "test"):
            write(folder / f"{part}.txt", paths[part])
        first, second, third = paths["test"]
        write(folder / "verification.csv", ["filename1,filename2,label", f"{first},{second},1", f"{first},{third},0"])


def sop(root: Path) -> None:
    top = root / "Stanford_Online_Products"
    number = 0
    for split, classes in (("train", (1, 2, 11)), ("test", (11319, 11320))):
        lines = ["image_id class_id super_class_id path"]
        for label in classes:
            for view in (0, 1):
                number += 1
                kind, code = ("bicycle", 1) if label % 2 else ("coffee_maker", 4)
                lines.append(f"{number} {label} {code} {kind}_final/1110851228{label:05d}_{view}.JPG")
        write(top / f"Ebay_{split}.txt", lines)
        touch(top, (line.split()[3] for line in lines[1:]))


def ilias(root: Path) -> None:
    for number, name in enumerate(("bold_bimp", "zippy_zootlenibble")):
        thing, code = root / f"ilias_core/{name}_{number:03d}", f"{number:03d}"
        touch(thing, [f"query/Q{code}_00.jpg", *(f"pos/P{code}_{k:02d}.jpg" for k in (0, 1))])
        write(thing / f"query/Q{code}_00_bbox.txt", ["10 20 30 40", "50 10 5 5"] if number else ["1 2 3 4"])
        write(thing / f"query/T{code}.txt", ["a text query"])
        write(thing / f"pos/P{code}_00_bbox.txt", ["5 5 9 9"])


def oml_csv(root: Path) -> None:
    lines = [
        "label,path,split,is_query,is_gallery,category,sequence,x_1,x_2,y_1,y_2",
        "0,images/a0.jpg,train,,,shoe,,,,,",
        "0,images/a1.jpg,train,,,shoe,,1,11,2,22",
        "1,images/b0.jpg,train,,,bag,,,,,",
        "1,images/b1.jpg,train,,,bag,,,,,",
        "2,images/c0.jpg,validation,True,False,bag,walk,,,,",
        "2,images/c1.jpg,validation,False,True,bag,walk,,,,",
        "2,images/c2.jpg,validation,0,1,bag,run,,,,",
        "3,images/d0.jpg,validation,1.0,1.0,shoe,,,,,",
        "3,images/d1.jpg,validation,True,True,shoe,,,,,",
    ]
    write(root / "df.csv", lines)
    touch(root, (line.split(",")[1] for line in lines[1:]))


def wildlife_csv(root: Path) -> None:
    lines = ["image_id,identity,path,bbox,species,video"]
    for number, name in enumerate(["luna", "luna", "milo", "milo", "nala", "nala", "unknown", "luna", "olaf", "olaf"]):
        box = '"[1.5, 2, 30, 40]"' if number == 0 else ""
        lines.append(f"{number},{name},images/{number:03d}.JPG,{box},{'lynx' if number < 4 else 'turtle'},{number % 3}")
    write(root / "metadata.csv", lines)
    touch(root, (f"images/{number:03d}.JPG" for number in range(10)))


def folder(root: Path) -> None:
    touch(root, (f"{name}/{k}.jpg" for name in ("rex", "bella", "tom", "kim") for k in (1, 2)))


TREES: dict[str, Callable[[Path], None]] = {
    build.__name__: build
    for build in (
        market1501, msmt17, cuhk03, lpw, prcc, rstpreid, vggface2, lfw, petface, sop, ilias, oml_csv,
        wildlife_csv, folder,
    )
}  # fmt: skip
