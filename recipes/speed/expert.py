"""Training and retrieval against the bare way: `python -m recipes.speed expert`."""

import argparse
import logging
import multiprocessing
import statistics
import time
import warnings
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from experts.expert import Expert
from recipes.process import use_cpu_well
from recipes.speed.measure import peak_megabytes_over_now, seconds
from zoo import IdentityBatch
from zoo.metrics import RetrievalMetrics, unit_norm


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.speed expert", description=__doc__)
    parser.add_argument("--backbone", default="mobilenetv3_small_050", help="timm architecture of the training step")
    parser.add_argument("--size", type=int, default=112, help="input size of the training step, in pixels")
    parser.add_argument("--precision", default="32-true", help="Lightning's precision, such as bf16-mixed")
    parser.add_argument("--steps", type=int, default=20, help="training steps in a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the two ways take turns within each")
    parser.add_argument("--queries", type=int, default=3_368, help="queries of the retrieval (Market-1501's)")
    parser.add_argument("--gallery", type=int, default=15_913, help="gallery of the retrieval (Market-1501's)")
    parser.add_argument("--width", type=int, default=512, help="width of an embedding of the retrieval")
    options = parser.parse_args(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    use_cpu_well(workers=0)
    table = Table("what", "the zoo", "the bare way", "ratio", "", title=f"{torch.get_num_threads()} threads, medians")
    table.add_row(*training_row(options))
    table.add_row(*retrieval_row(options))
    Console().print(table)


# ---------------------------------------------------------------------- training step


class _Batches(Dataset[IdentityBatch]):
    """Ready batches in memory: loading them costs both ways nothing."""

    def __init__(self, batches: list[IdentityBatch], length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> IdentityBatch:
        return self.batches[step % len(self.batches)]


class _BatchData(LightningDataModule):
    def __init__(self, batches: list[IdentityBatch], steps: int) -> None:
        super().__init__()
        self.batches = _Batches(batches, steps)
        self.train_identities = torch.cat([batch.identities for batch in batches]).unique().numpy()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)


class _StepTimes(Callback):
    """Seconds between the starts of neighbouring steps: all that the Trainer adds to a step included."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.starts.append(time.perf_counter())

    @property
    def median(self) -> float:
        return statistics.median(b - a for a, b in zip(self.starts, self.starts[1:], strict=False))


def training_row(options: argparse.Namespace) -> list[str]:
    """Expert under the Trainer against the same model, losses, optimiser and batches in a plain loop."""
    torch.manual_seed(0)
    identities = torch.arange(64).repeat_interleave(4).view(4, 64)
    zero = torch.zeros(64, dtype=torch.int64)
    batches = [
        IdentityBatch(torch.randn(64, 3, options.size, options.size), ids, zero, zero, torch.zeros(64, 0))
        for ids in identities
    ]
    ours, bare = [], []
    for _ in range(options.rounds):
        ours.append(_lightning_step(options, batches))
        bare.append(_bare_step(options, batches))
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    a, b = statistics.median(ours), statistics.median(bare)
    return [
        f"training step of 64, {options.backbone}, {options.precision}",
        f"{1e3 * a:.1f} ms",
        f"{1e3 * b:.1f} ms",
        f"{ratio:.2f}",
        f"{1e3 * (a - b):+.1f} ms a step",
    ]


def _lightning_step(options: argparse.Namespace, batches: list[IdentityBatch]) -> float:
    times = _StepTimes()
    trainer = Trainer(
        max_steps=options.steps,
        precision=options.precision,
        callbacks=[times],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(0)
    expert = Expert(backbone=options.backbone, size=options.size)
    expert._print_what_trains = lambda groups: None  # type: ignore[method-assign]
    trainer.fit(expert, datamodule=_BatchData(batches, options.steps))
    return times.median


def _bare_step(options: argparse.Namespace, batches: list[IdentityBatch]) -> float:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    expert = Expert(backbone=options.backbone, size=options.size).to(device)
    head = expert.make_head(256, expert.encoder.embed_dim).to(device)
    assert expert.metric_loss is not None
    expert.train()
    parameters = [p for p in [*expert.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    mixed = options.precision.endswith("-mixed")
    starts = []
    for step in range(options.steps):
        starts.append(time.perf_counter())
        batch = batches[step % len(batches)]
        images, labels = batch.images.to(device), batch.identities.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            features = expert.encoder.features(images)
            loss = head(expert.encoder.neck(features), labels) + expert.metric_loss(features, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return statistics.median(b - a for a, b in zip(starts, starts[1:], strict=False))


# ---------------------------------------------------------------------- retrieval


def retrieval_row(options: argparse.Namespace) -> list[str]:
    """All retrieval scores, from stored embeddings to numbers, against the product of the two matrices alone."""
    context = multiprocessing.get_context("spawn")  # a process of its own, whose peak memory is the retrieval's
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_time_retrieval, args=(sender, vars(options)))
    process.start()
    ours, bare, ratio, megabytes = receiver.recv()
    process.join()
    return [
        f"retrieval {options.queries:,} x {options.gallery:,} x {options.width}",
        f"{ours:.2f} s",
        f"{bare:.2f} s",
        f"{ratio:.2f}",
        f"{megabytes:.0f} MB over the features",
    ]


def _time_retrieval(sender: Any, options: dict[str, Any]) -> None:
    use_cpu_well(workers=0)
    generator = torch.Generator().manual_seed(0)
    total = options["queries"] + options["gallery"]
    embeddings = unit_norm(torch.randn(total, options["width"], generator=generator))
    identities = torch.randint(0, 751, (total,), generator=generator)
    cameras = torch.randint(0, 6, (total,), generator=generator)
    is_query = torch.arange(total) < options["queries"]

    def product() -> object:
        return embeddings[: options["queries"]] @ embeddings[options["queries"] :].T

    metrics = RetrievalMetrics()
    for rows in torch.arange(total).split(256):
        metrics.update(embeddings[rows], identities[rows], rows, cameras[rows], is_query[rows], ~is_query[rows])
    megabytes = peak_megabytes_over_now(metrics.compute)
    ours, bare = [], []
    for _ in range(options["rounds"]):
        metrics._computed = None
        ours.append(seconds(metrics.compute))
        bare.append(seconds(product))
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    sender.send((statistics.median(ours), statistics.median(bare), ratio, megabytes))
