"""A tiny base model, tiny photos and galleries made of them: what the tests of stage 1 run on."""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lightning import Trainer
from PIL import Image

from fusion import AdditiveFusion
from tests.conftest import draw_identity
from zoo.cards import card
from zoo.conversations.manifest import SCHEMA, Conversations, hashes
from zoo.data.images import image_size
from zoo.vlm.batch import VLMBatch
from zoo.vlm.component import save_vlm
from zoo.vlm.data import TaskData
from zoo.vlm.match import MatchData, MatchStage
from zoo.vlm.small.model import small_processor, small_tokenizer, small_vlm
from zoo.vlm.tasks.match import GallerySource

ENCODER = "general_mobilenetv3s050.world"
EXPERTS = {"pet": "pet_mobilenetv3s050.world", "object": "object_mobilenetv3s050.world"}
# Without products: their brackets take more tokens than those of pets.
TEXTS = ["[Pet 3] [None] Which pet is the query? Answer with one bracket. Query"] * 5

_KEPT = tempfile.TemporaryDirectory(prefix="tiny_base_")


@cache
def base(seed: int = 0) -> str:
    """The folder of a random model of 4 tokens an image."""
    tokenizer = small_tokenizer(TEXTS, 400)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = small_vlm(tokenizer, width=32, layers=2, vision_width=32, vision_layers=2, patch=14)
        for parameter in network.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    folder = Path(_KEPT.name) / f"base-{seed}"
    save_vlm(network, small_processor(tokenizer, 56, 14), folder, name=f"tiny{seed}.world")
    return str(folder)


def photos(root: Path, identities: int, views: int = 2, seed: int = 0) -> None:
    """`<identity>_<view>.jpg`; shapes differ from identity to identity."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    for identity in range(identities):
        pattern = draw_identity(rng, 48)[: 32 + 4 * (identity % 5)]
        for view in range(views):
            image = pattern + rng.normal(0, 10, pattern.shape)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"{identity:02d}_{view}.jpg")


def galleries(
    root: Path,
    category: str,
    rows: Sequence[tuple[str, str, int, int]],
    identities: int = 8,
    encoder: str = ENCODER,
    seed: int = 0,
) -> Conversations:
    """Conversations about random photos, which are drawn below `root`.

    Args:
        root: folder to make.
        category: of the expert.
        rows: split, level, K and answer of each.
        identities: how many there are to draw from, in each split.
        encoder: card that the manifest was mined with.
        seed: of photos and galleries.
    """
    splits = list(dict.fromkeys(split for split, *_ in rows))
    photos(root, identities * len(splits), seed=seed)
    rng, table = np.random.default_rng(seed), []
    for split, level, k, answer in rows:
        query, *others = (rng.permutation(identities)[: k + 1] + identities * splits.index(split)).tolist()
        shown = [f"{other:02d}_0.jpg" for other in others[:k]]
        if answer:
            shown[answer - 1] = f"{query:02d}_0.jpg"
        row = {"split": split, "category": category, "level": level, "tau": 0.5, "answer": answer}
        row |= {"query_path": f"{query:02d}_1.jpg", "query_identity": str(query), "query_box": None}
        names = [str(int(path[:2])) for path in shown]
        row |= {"gallery_paths": shown, "gallery_identities": names, "gallery_boxes": [None] * k}
        row["similarities"] = rng.uniform(0.5, 1, k).tolist()
        table.append(row)
    found = hashes(root, sorted(path.name for path in root.glob("*.jpg")))
    for row in table:
        row["query_sha256"] = found[row["query_path"]]
        row["gallery_sha256"] = [found[path] for path in row["gallery_paths"]]
    made_with = card(encoder)
    meta = {
        "encoder": {"name": made_with.name, "sha256": made_with.weights.sha256},
        "category": category,
        "skipped": {split: {level: {} for _, level, _, _ in rows} for split, _, _, _ in rows},
    }
    return Conversations(root, pa.Table.from_pylist(table, SCHEMA), meta)


def rows(split: str, count: int, k: int = 3, level: str = "tau=0.5") -> list[tuple[str, str, int, int]]:
    """Rows for `galleries`, the answers in turn."""
    return [(split, level, k, n % k + 1) for n in range(count)]


def data_of(*collections: Conversations, **options: Any) -> MatchData:
    """Data of conversations, by way of manifests beside their images."""
    sources = []
    for conversations in collections:
        conversations.save(conversations.root / "manifest.parquet")
        sources.append(GallerySource(str(conversations.root / "manifest.parquet")))
    return MatchData(sources, **{"batch_size": 4, "eval_batch_size": 4, "workers": 0, **options})


def pets_and_objects(root: Path) -> Path:
    """Manifests of 8 conversations of pets and 8 of objects to train on, 3 and 3 to validate and to test on."""
    split = [*rows("train", 8), *rows("val", 3), *rows("test", 3)]
    for seed, category in enumerate(("pet", "object")):
        galleries(root / category, category, split, seed=seed).save(root / category / "manifest.parquet")
    return root


def data_in(folder: Path, **options: Any) -> MatchData:
    """Data of what `pets_and_objects` has written."""
    sources = [GallerySource(str(folder / name / "manifest.parquet")) for name in ("pet", "object")]
    return MatchData(sources, **{"batch_size": 4, "eval_batch_size": 4, "workers": 0, **options})


def stage(**options: Any) -> MatchStage:
    """Stage 1 on the tiny base, by default with two experts."""
    return MatchStage(**{"vlm": base(), "experts": EXPERTS, "fusion": AdditiveFusion, **options})


def trainer(folder: Path, **options: Any) -> Trainer:
    """Of one epoch on the CPU, without a trace."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, accelerator="cpu", **{"max_epochs": 1, **quiet, **options})


def attached(model: MatchStage, data: TaskData, folder: Path) -> MatchStage:
    """The model and data set up, for steps that are called by hand."""
    run = trainer(folder)
    run.strategy.connect(model)
    model.trainer = run
    run._data_connector.attach_datamodule(model, datamodule=data)
    data.trainer = run
    data.setup()
    data.connect(model)
    model.connect(data)
    model.configure_model()
    model.log = lambda *args, **options: None  # type: ignore[method-assign]
    return model


def first_batch(model: MatchStage, data: TaskData, folder: Path) -> VLMBatch:
    """The first batch of training, of a model and data that are set up."""
    attached(model, data, folder)
    return next(iter(data.train_dataloader()))


def fitted(model: MatchStage, data: TaskData, folder: Path) -> set[str]:
    """Train for an epoch, and return the names of the tensors that have changed."""
    start: dict[str, torch.Tensor] = {}
    model.on_train_start = lambda: start.update({n: t.clone() for n, t in model.state_dict().items()})  # type: ignore[method-assign]
    trainer(folder, limit_val_batches=0).fit(model, data)
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}


def scores_of(folder: Path, data: TaskData, **options: Any) -> dict[str, float]:
    """Name as it is logged -> score, of a test of stage 1."""
    return dict(trainer(folder).test(stage(**options), data, verbose=False)[0])


def corrupt(path: Path) -> None:
    """Cut off: its size can still be read, its pixels cannot."""
    path.write_bytes(path.read_bytes()[:-200])
    assert path.suffix != ".jpg" or image_size(path)
