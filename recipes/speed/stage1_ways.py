"""The ways to train stage 1 that are compared, and what all of them are given."""

import logging
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast
from unittest.mock import patch

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedConfig

import zoo
import zoo.vlm.tasks.images
from fusion import AdditiveFusion
from recipes.process import use_cpu_well
from recipes.speed.measure import Rise, now
from recipes.speed.qwen3b import flops, sized
from zoo.contracts import IdentityEncoder
from zoo.conversations.manifest import Conversation
from zoo.data.samplers import Key, ShuffledSampler
from zoo.module import Optim
from zoo.vlm.batch import IGNORED, VLMBatch
from zoo.vlm.families import family_of
from zoo.vlm.fused import FusedVLM
from zoo.vlm.loading import load_vlm
from zoo.vlm.match import MatchData, MatchStage
from zoo.vlm.processor import VLMProcessor
from zoo.vlm.tasks.match import GallerySource, MatchTask
from zoo.vlm.tasks.prompts import gallery_question, option

EXPERT = "{}_mobilenetv3s050.world"
OPTIM = Optim(lr=1e-3, weight_decay=0.0, warmup=0.0)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """What is to be done, in whatever way.

    Args:
        vlm: name on the shelf, folder or hub id of the model.
        manifests: files of the conversations.
        batch: conversations in a batch.
        steps: steps that are timed in a turn.
        device: cuda or cpu.
        vocabulary: rows of the embedding, the further ones random; None for those of the model.
        sizes: configuration of a Qwen2.5-VL with random bfloat16 weights and gradient checkpointing in place of the
            model, of which the tokenizer is kept; None for the model itself, in float32.
    """

    vlm: str
    manifests: tuple[str, ...]
    batch: int
    steps: int
    device: str = "cpu"
    vocabulary: int | None = None
    sizes: Mapping[str, Mapping[str, Any]] | None = None

    def model(self) -> tuple[Any, Any]:
        """The model of transformers and its processor; the same in every process."""
        torch.manual_seed(0)
        network, processor = load_vlm(self.vlm)
        if self.sizes is not None:
            network, processor = sized(self.sizes, processor.tokenizer, self.device)
            network.gradient_checkpointing_enable({"use_reentrant": False})
        elif self.vocabulary is not None:
            network.resize_token_embeddings(self.vocabulary, mean_resizing=False)
        return network.to(self.device), processor

    def sources(self) -> list[GallerySource]:
        """Its conversations."""
        return [GallerySource(path) for path in self.manifests]

    def task(self) -> MatchTask:
        """Its conversations, set up."""
        task = MatchTask(self.sources())
        task.setup()
        return task

    def data(self, batch: int) -> MatchData:
        """Its conversations in batches, decoded where they are trained on."""
        return MatchData(self.sources(), batch_size=batch, workers=0)


class Turn(NamedTuple):
    """What some steps gave.

    Args:
        seconds: median of a step.
        megabytes: highest rise of memory.
        losses: of the first two steps; of the first alone where there are adapters, which open after it.
        towers: share of a step that the frozen towers take, with all that is done for them alone.
        tokens: in a step, without padding.
        flops: model FLOPs of a step; nan where they are not counted.
    """

    seconds: float
    megabytes: float
    losses: tuple[float, ...]
    towers: float
    tokens: float
    flops: float


class Watch:
    """Seconds spent in some functions."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    def __call__(self, work: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        """The function, watched; on CUDA it then waits for the device."""

        @wraps(work)
        def watched(*given: Parameters.args, **named: Parameters.kwargs) -> Result:
            start = now(self.device)
            try:
                return work(*given, **named)
            finally:
                self.seconds += now(self.device) - start

        return watched


class Log(Callback):
    """Notes what makes a `Turn`: as a callback of the Trainer, or by calls of its own methods.

    Args:
        device: where the model is.
        towers: watches what is done for the frozen towers; None where nothing does.
        compared: how many losses are to be compared.
        config: of a model whose FLOPs are to be counted.
    """

    def __init__(
        self,
        device: torch.device,
        towers: Watch | None = None,
        compared: int = 2,
        config: PreTrainedConfig | None = None,
    ) -> None:
        self.device, self.towers, self.compared, self.config = device, towers or Watch(device), compared, config
        self.starts: list[tuple[float, float]] = []
        self.losses: list[Tensor] = []
        self.tokens: list[int] = []
        self.flops: list[float] = []

    def begin(self) -> None:
        """The model is in place, and nothing is loaded yet."""
        self.rise = Rise(self.device)

    def start(self) -> None:
        """A batch is there, its step starts."""
        self.starts.append((now(self.device), self.towers.seconds))

    def turn(self) -> Turn:
        """All in all."""
        pairs = list(zip(self.starts, self.starts[1:], strict=False))
        return Turn(
            seconds=statistics.median(after[0] - before[0] for before, after in pairs),
            megabytes=self.rise.megabytes(),
            losses=tuple(float(loss) for loss in self.losses[: self.compared]),
            towers=statistics.median((after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs),
            tokens=statistics.fmean(self.tokens or [math.nan]),
            flops=statistics.fmean(self.flops or [math.nan]),
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: VLMBatch, batch_idx: int
    ) -> None:
        self.start()
        if self.config is not None:
            lengths = batch.attention_mask.sum(1)
            self.tokens.append(int(lengths.sum()))
            answers = int((batch.labels != IGNORED).sum())
            patches = cast(MatchStage, pl_module).fused.patches(batch)
            self.flops.append(flops(self.config, patches.tolist(), lengths.tolist(), answers))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: VLMBatch, batch_idx: int
    ) -> None:
        self.losses.append(cast(dict[str, Tensor], outputs)["loss"].detach())


class Start:
    """What trains, and how it started."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.copy_(value)
            parameter.grad = None


# ---------------------------------------------------------------------- the plain way


class Photos(Dataset[tuple[Conversation, list[Image.Image]]]):
    """Training conversations with their images, gallery first."""

    def __init__(self, task: MatchTask) -> None:
        self.task = task

    def __len__(self) -> int:
        return self.task.size("train")

    def __getitem__(self, key: Key) -> tuple[Conversation, list[Image.Image]]:
        root, conversation = self.task.at("train", key.row)
        refs = (*conversation.gallery, conversation.query)
        return conversation, [Image.open(root / ref.path).convert("RGB") for ref in refs]


class Plain:
    """A loop over transformers' processor, model and loss, and AdamW."""

    def __init__(self, job: Job) -> None:
        quieten()
        self.job, self.device = job, torch.device(job.device)
        self.network, self.processor = job.model()
        self.network.requires_grad_(False).train()
        projector = self.network.get_submodule(family_of(self.network.config).projector)
        projector.float().requires_grad_(True)
        self.trained = Start(projector)
        self.photos = Photos(job.task())
        self.run(batch=2, steps=1)

    def __call__(self) -> Turn:
        return self.run(self.job.batch, self.job.steps)

    def run(self, batch: int, steps: int) -> Turn:
        """Train from the start for one step more than are timed."""
        self.trained.restore()
        optimizer = torch.optim.AdamW(self.trained.parameters, lr=OPTIM.lr, weight_decay=OPTIM.weight_decay)
        sampler = ShuffledSampler(np.arange(len(self.photos)), batch, steps=steps + 1)
        loader = DataLoader(self.photos, batch, sampler=sampler, collate_fn=self.inputs)
        log = Log(self.device)
        log.begin()
        for inputs in loader:
            inputs = inputs.to(self.device)
            log.start()
            with torch.autocast(self.device.type, torch.bfloat16) if self.job.sizes else nullcontext():
                loss = self.network(**inputs, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            log.losses.append(loss.detach())
            del inputs, loss  # else the next batch is loaded while this one still takes memory
        return log.turn()

    def inputs(self, items: Sequence[tuple[Conversation, list[Image.Image]]]) -> Any:
        """What transformers' processor makes of them, with labels."""
        tokenizer, texts, answers = self.processor.tokenizer, [], []
        for conversation, images in items:
            messages = gallery_question(images[:-1], images[-1], conversation.category)
            prompt = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            answer = option(conversation.category, conversation.answer) + tokenizer.eos_token
            texts.append(prompt + answer)
            answers.append(len(tokenizer(answer, add_special_tokens=False)["input_ids"]))
        pictures = [images for _, images in items]
        inputs = self.processor(text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt")
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        for row, (end, count) in enumerate(zip(inputs["attention_mask"].sum(1).tolist(), answers, strict=True)):
            labels[row, end - count : end] = inputs["input_ids"][row, end - count : end]
        inputs["labels"] = labels
        return inputs


# ---------------------------------------------------------------------- our way


class Ours:
    """`MatchStage` under the Trainer.

    Args:
        job: what is to be done.
        experts: with an expert and an adapter for each category.
        cache: folder where the frozen towers' features are kept; None runs them in every step.
    """

    def __init__(self, job: Job, experts: bool = False, cache: Path | None = None) -> None:
        quieten()
        self.job, self.device = job, torch.device(job.device)
        network, processor = job.model()
        categories = job.task().groups if experts else []
        encoders = {category: cast(IdentityEncoder, zoo.load(EXPERT.format(category))) for category in categories}
        self.stage = MatchStage(vlm=job.vlm, optim=OPTIM, cache=None if cache is None else str(cache))
        fused = FusedVLM(network, encoders, partial(AdditiveFusion, rescale=True))
        batcher = VLMProcessor(
            processor, fused.family, network.config, experts={name: e.transform for name, e in encoders.items()}
        )
        self.stage.fused, self.stage.batcher = fused, batcher
        self.stage.apply_freezing()
        self.trained, self.watch = Start(fused), Watch(self.device)
        for owner, name in ((fused, "run_towers"), (batcher, "_pixels"), (batcher, "_experts")):
            setattr(owner, name, self.watch(getattr(owner, name)))
        self.run(batch=2, steps=1)

    def __call__(self) -> Turn:
        return self.run(self.job.batch, self.job.steps)

    def run(self, batch: int, steps: int) -> Turn:
        """Train from the start for one step more than are timed."""
        self.trained.restore()
        fused = self.stage.fused
        log = Log(self.device, self.watch, 1 if fused.adapters else 2, fused.vlm.config if self.job.sizes else None)
        trainer = Trainer(
            max_steps=steps + 1,
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if self.job.sizes else "32-true",
            callbacks=[log],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
        images = zoo.vlm.tasks.images
        with (
            patch.object(images, "read_image", self.watch(images.read_image)),
            patch.object(self.stage, "_print_what_trains"),
        ):
            trainer.fit(self.stage, datamodule=self.job.data(batch))
        return log.turn()


def quieten() -> None:
    """Threads and memory as the recipes hold them, and nothing printed by the Trainer or transformers."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    use_cpu_well(workers=0)
