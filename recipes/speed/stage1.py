"""Stage 1's training step against a bare loop on the same model of transformers: `python -m recipes.speed stage1`.

The plain way runs transformers' processor on text and images, the whole model with its labels and hence the logits of
all tokens, and AdamW over the projector, in every step. Both get the same conversations of the procedural world in the
same order, decode them from disk in the training process, start from the same weights, and hold their threads and
freed memory alike. Ours is `MatchStage` under Lightning's Trainer, as the recipe runs it. The losses of the first two
steps must agree, the second after an update, else nothing is compared.

A step lasts from the start of one to the start of the next, loading included. Memory is the highest rise over what it
was before the first step, with the model in place. Each way has a process of its own; they take turns, and ratios are
medians over the rounds.
"""

import argparse
import logging
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import zoo.vlm.data
from fusion import AdditiveFusion
from recipes.cli import use_cpu_well
from recipes.speed.measure import Apart, Rise, now
from zoo.data.conversations import Conversation, Conversations
from zoo.data.samplers import Key, ShuffledSampler
from zoo.module import Optim
from zoo.vlm.batch import IGNORED, VLMBatch, VLMProcessor
from zoo.vlm.component import located
from zoo.vlm.data import ConversationData, GallerySource
from zoo.vlm.families import family_of, load_vlm
from zoo.vlm.fused import FusedVLM
from zoo.vlm.match import MatchStage
from zoo.vlm.prompts import option, stage_one
from zoo.vlm.small import IMAGE, VIDEO, VISION_END, VISION_START, small_processor
from zoo.world import Faces, Objects, Persons, Pets, World

# As recipes/configs/vlm_stage1.yaml has them, so that galleries which were mined for it serve here, too.
WORLD: dict[str, World] = {"person": Persons(), "face": Faces(), "pet": Pets(), "object": Objects()}
MINED = {"tau_quantile": [0.5, 0.9, 0.97], "eval_conversations": 200}
EXPERT = "{}_mobilenetv3s050.world"

VOCABULARY = 151_936  # Qwen2.5-VL's
WIDE_BATCH = 8  # most conversations in a batch where the logits of all tokens take gigabytes
OPTIM = Optim(lr=1e-3, weight_decay=0.0, warmup=0.0)
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 1e-2}  # of losses

#: Qwen2.5-VL-3B; what is not said is the default of transformers' configuration
SIZES: dict[str, dict[str, Any]] = {
    "text_config": {
        "vocab_size": VOCABULARY,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128_000,
        "max_window_layers": 36,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": True,
    },
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048},
}
IMAGE_SIZE = 224
#: dense bfloat16 FLOP/s of a device, by a part of its name (NVIDIA's data sheets)
PEAK = {"A100": 312e12, "H100 80GB HBM3": 989e12, "H200": 989e12}


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.speed stage1",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--vlm", default="vlm_qwen25vl3m.world", help="name on the shelf, folder or hub id of the model")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the ways take turns within each")
    parser.add_argument("--steps", type=int, default=10, help="training steps of a turn, two or more")
    parser.add_argument("--batch", type=int, default=32, help="conversations in a batch")
    parser.add_argument("--real", action="store_true", help="Qwen2.5-VL-3B's sizes with random weights, too (CUDA)")
    options = parser.parse_args(args)
    if options.steps < 2:
        parser.error(f"--steps is {options.steps}, but the losses of two steps are compared. Give 2 or more.")
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        manifests = conversations(Path(folder), options.batch * (options.steps + 1))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        job = Job(options.vlm, manifests, options.batch, options.steps, device)
        rows = small_rows(job, options.rounds, Path(folder) / "features")
        rows += wide_rows(replace(job, batch=min(options.batch, WIDE_BATCH), vocabulary=VOCABULARY), options.rounds)
        if options.real and device == "cuda":
            rows += real_rows(replace(job, batch=min(options.batch, WIDE_BATCH), sizes=SIZES), options.rounds)
    console.print(table(rows, f"{options.vlm} on {device}, {torch.get_num_threads()} threads, medians"))
    if options.real and device != "cuda":
        console.print("The row of Qwen2.5-VL-3B's sizes is skipped: there is no CUDA device here.")


# ---------------------------------------------------------------------- what all ways share


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
        network, processor = load_vlm(located(self.vlm))
        if self.sizes is not None:
            network, processor = sized(self.sizes, processor.tokenizer, self.device)
            network.gradient_checkpointing_enable({"use_reentrant": False})
        elif self.vocabulary is not None:
            network.resize_token_embeddings(self.vocabulary, mean_resizing=False)
        return network.to(self.device), processor

    def data(self, batch: int) -> ConversationData:
        """Its conversations in batches, decoded where they are trained on."""
        return ConversationData([GallerySource(path) for path in self.manifests], batch_size=batch, workers=0)


def sized(sizes: Mapping[str, Mapping[str, Any]], tokenizer: Any, device: str) -> tuple[Any, Any]:
    """A Qwen2.5-VL of these sizes with random bfloat16 weights, made on the device, and its processor."""
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

    special = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    special |= {"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in special.items()}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2_5_VLConfig(
        text_config={**sizes["text_config"], **ends},
        vision_config=dict(sizes["vision_config"]),
        tie_word_embeddings=sizes["text_config"]["tie_word_embeddings"],
        **ids,
    )
    with torch.device(device):
        network = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return network, small_processor(tokenizer, IMAGE_SIZE, config.vision_config.patch_size)


def conversations(folder: Path, count: int) -> tuple[str, ...]:
    """Manifests of `count` training conversations of the world, equally many of each category."""
    data = ConversationData(world=WORLD, **MINED)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    paths, rng = [], np.random.default_rng(0)
    for number, mined in enumerate(data.conversations):
        own = np.flatnonzero(mined.column("split") == "train")
        wanted = (count + number) // len(data.conversations)
        paths.append(folder / f"{mined.meta['category']}.parquet")
        mined.select(np.sort(rng.choice(own, wanted, replace=wanted > len(own)))).save(paths[-1])
    return tuple(map(str, paths))


class Turn(NamedTuple):
    """What some steps gave.

    Args:
        seconds: median of a step.
        megabytes: highest rise of memory.
        losses: of the first two steps.
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

    def __call__(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """The function, watched; on CUDA it then waits for the device."""

        @wraps(work)
        def watched(*given: Any, **named: Any) -> Any:
            start = now(self.device)
            try:
                return work(*given, **named)
            finally:
                self.seconds += now(self.device) - start

        return watched


class Log(Callback):
    """Notes what makes a `Turn`: by itself under the Trainer, else told to."""

    def __init__(self, device: torch.device, towers: Watch | None = None, config: Any = None) -> None:
        self.device, self.towers, self.config = device, towers or Watch(device), config
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
            losses=tuple(float(loss) for loss in self.losses[:2]),
            towers=statistics.median((after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs),
            tokens=statistics.fmean(self.tokens or [math.nan]),
            flops=statistics.fmean(self.flops or [math.nan]),
        )

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        self.begin()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: VLMBatch, number: int) -> None:
        self.start()
        if self.config is not None:
            lengths = batch.attention_mask.sum(1)
            self.tokens.append(int(lengths.sum()))
            answers = int((batch.labels != IGNORED).sum())
            self.flops.append(flops(self.config, module.fused.patches(batch).tolist(), lengths.tolist(), answers))

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"].detach())


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
    """Conversations with their images, gallery first."""

    def __init__(self, collections: Sequence[Conversations], rows: np.ndarray) -> None:
        self.collections, self.rows = collections, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Key) -> tuple[Conversation, list[Image.Image]]:
        collection, number = self.rows[key.row]
        conversation, root = self.collections[collection][int(number)], self.collections[collection].root
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
        data = job.data(job.batch)
        data.setup("fit")
        self.photos = Photos(data.conversations, data.rows("train"))
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
        return log.turn()

    def inputs(self, items: Sequence[tuple[Conversation, list[Image.Image]]]) -> Any:
        """What transformers' processor makes of them, with labels."""
        tokenizer, texts, answers = self.processor.tokenizer, [], []
        for conversation, images in items:
            messages = stage_one(images[:-1], images[-1], conversation.category)
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
        categories = [Conversations.load(Path(path)).meta["category"] for path in job.manifests] if experts else []
        encoders: dict[str, Any] = {category: zoo.load(EXPERT.format(category)) for category in categories}
        self.stage = MatchStage(job.vlm, optim=OPTIM, cache=None if cache is None else str(cache))
        self.stage._print_what_trains = lambda groups: None  # type: ignore[method-assign]
        fused = FusedVLM(network, encoders, partial(AdditiveFusion, rescale=True))
        batcher = VLMProcessor(
            processor, fused.family, network.config, experts={name: e.transform for name, e in encoders.items()}
        )
        self.trained, self.watch = Start(fused), Watch(self.device)
        for owner, name in ((fused, "see"), (batcher, "_pixels"), (batcher, "_experts")):
            setattr(owner, name, self.watch(getattr(owner, name)))
        self.stage.fused, self.stage.batcher = fused, batcher
        self.run(batch=2, steps=1)

    def __call__(self) -> Turn:
        return self.run(self.job.batch, self.job.steps)

    def run(self, batch: int, steps: int) -> Turn:
        """Train from the start for one step more than are timed."""
        self.trained.restore()
        log = Log(self.device, self.watch, self.stage.fused.vlm.config if self.job.sizes else None)
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
        )
        with patch.object(zoo.vlm.data, "read_image", self.watch(zoo.vlm.data.read_image)):
            trainer.fit(self.stage, datamodule=self.job.data(batch))
        return log.turn()


def quieten() -> None:
    """Threads and memory as the recipes hold them, and no word from the Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    use_cpu_well(workers=0)


# ---------------------------------------------------------------------- model FLOPs


def flops(config: Any, patches: Sequence[int], lengths: Sequence[int], answers: int) -> float:
    """FLOPs that a step of a frozen Qwen2.5-VL with a trained projector needs, whatever is computed beyond: two for
    each multiplication and addition of a matrix product. Frozen matrices cost as much backward as forward, attention
    twice as much; the tower is not gone back through. Logits count for answers only; what is computed twice to save
    memory, padding, norms, activations and rotations do not count. Attention counts whole, masked or not.

    Args:
        config: of the model.
        patches: of each image, before they are merged.
        lengths: tokens of each conversation.
        answers: tokens of all answers.
    """
    text, vision = config.text_config, config.vision_config
    merge, wide = vision.spatial_merge_size**2, vision.hidden_size
    side = vision.patch_size
    embed = vision.in_channels * vision.temporal_patch_size * side * side * wide
    window = (vision.window_size // side) ** 2
    whole = len(set(vision.fullatt_block_indexes) & set(range(vision.depth)))
    pairs = sum(whole * n * n + (vision.depth - whole) * n * min(n, window) for n in patches)
    block = 4 * wide**2 + 3 * wide * vision.intermediate_size
    tower = 2 * sum(patches) * (embed + vision.depth * block) + 4 * wide * pairs
    first, second = (merge * wide) ** 2, merge * wide * vision.out_hidden_size
    projector = 2 * sum(patches) / merge * (2 * first + 3 * second)
    width, heads = text.hidden_size, text.num_attention_heads
    head = width // heads
    layer = 2 * width * head * (heads + text.num_key_value_heads) + 3 * width * text.intermediate_size
    linear = 2 * 2 * (sum(lengths) * text.num_hidden_layers * layer + answers * width * text.vocab_size)
    attention = 3 * 4 * heads * head * text.num_hidden_layers * sum(n * n for n in lengths)
    return tower + projector + linear + attention


# ---------------------------------------------------------------------- the table


class Row(NamedTuple):
    """One comparison; the target is the least ratio, or the largest one where less is better."""

    what: str
    ours: str
    other: str
    ratio: float
    target: float | None = None
    less: bool = False

    def cells(self) -> list[str]:
        """As the table has them."""
        if self.target is None or math.isnan(self.ratio):
            return [self.what, self.ours, self.other, f"{self.ratio:.2f}", "", ""]
        met = self.ratio <= self.target if self.less else self.ratio >= self.target
        wanted = f"{'<=' if self.less else '>='} {self.target:g}"
        return [self.what, self.ours, self.other, f"{self.ratio:.2f}", wanted, "met" if met else "not met"]


Turns = Mapping[str, Sequence[Turn]]


def measured(job: Job, ways: Mapping[str, tuple[Any, ...]], rounds: int) -> Turns:
    """All turns of every way, each in a process of its own.

    Args:
        job: what is to be done.
        ways: name -> class, and its arguments after the job; the first is what the others are compared with.
        rounds: turns of each.

    Raises:
        RuntimeError: a way fails, or its losses are not those of the first.
    """
    workers: dict[str, Apart[Turn]] = {}
    turns: dict[str, list[Turn]] = {way: [] for way in ways}
    try:
        for way, (make, *arguments) in ways.items():
            workers[way] = Apart(make, job, *arguments)
        for _ in range(rounds):
            for way, worker in workers.items():
                turns[way].append(worker.turn())
    finally:
        for worker in workers.values():
            worker.close()
    check_same_work(turns, AGREEMENT[torch.bfloat16 if job.sizes else torch.float32])
    return turns


def check_same_work(turns: Turns, within: float) -> None:
    """
    Raises:
        RuntimeError: losses differ. Adapters start closed, so only the first step's counts where there are any.
    """
    (first, reference), *others = turns.items()
    for way, own in others:
        steps = 1 if "experts" in way else 2
        for step in range(steps):
            apart = abs(own[0].losses[step] - reference[0].losses[step])
            if not apart <= within:
                raise RuntimeError(
                    f"The loss of step {step + 1} is {own[0].losses[step]:.5f} for {way} and "
                    f"{reference[0].losses[step]:.5f} for {first}: they do not do the same, so their times say nothing. "
                    "Find out where they part before comparing them."
                )


def median_ratio(turns: Turns, way: str, other: str, of: Callable[[Turn], float]) -> float:
    """Median over the rounds of one way's number over the other's in the same round."""
    return statistics.median(of(a) / of(b) for a, b in zip(turns[way], turns[other], strict=True))


def median_of(turns: Sequence[Turn], of: Callable[[Turn], float]) -> float:
    return statistics.median(map(of, turns))


def speed_row(turns: Turns, way: str, other: str, job: Job, what: str, target: float | None = None) -> Row:
    """Conversations in a second."""
    ours, others = (f"{job.batch / median_of(turns[name], _seconds):.1f}/s" for name in (way, other))
    return Row(f"{what}: conversations", ours, others, median_ratio(turns, other, way, _seconds), target)


def memory_row(turns: Turns, way: str, other: str, what: str, target: float | None = None) -> Row:
    """Highest rise of memory."""
    ours, others = (f"{median_of(turns[name], _megabytes):,.0f} MB" for name in (way, other))
    return Row(f"{what}: memory", ours, others, median_ratio(turns, way, other, _megabytes), target, less=True)


def small_rows(job: Job, rounds: int, cache: Path) -> list[Row]:
    """The small model against the plain way, and with cached features against without."""
    ways: dict[str, tuple[Any, ...]] = {
        "plain": (Plain,),
        "ours": (Ours,),
        "ours cached": (Ours, False, cache),
        "ours with experts": (Ours, True),
        "ours with experts cached": (Ours, True, cache),
    }
    turns, batch = measured(job, ways, rounds), f"batch {job.batch}"
    rows = [
        speed_row(turns, "ours", "plain", job, f"ours : plain, {batch}", 1.0),
        memory_row(turns, "ours", "plain", f"ours : plain, {batch}", 0.9),
        speed_row(turns, "ours with experts", "plain", job, "with experts and adapters : plain"),
        memory_row(turns, "ours with experts", "plain", "with experts and adapters : plain"),
    ]
    for way, named in (("ours", "cached : not"), ("ours with experts", "cached : not, with experts and adapters")):
        rows.append(speed_row(turns, f"{way} cached", way, job, named))
        achieved, share = rows[-1].ratio, median_of(turns[way], lambda turn: turn.towers)
        bound = 1 / (1 - share)
        what = f"{named}: of the bound 1 / (1 - s), s = {share:.0%} for decoding, preprocessing and towers"
        rows.append(Row(what, f"{achieved:.2f}x", f"{bound:.2f}x", achieved / bound, 0.85))
    return rows


def wide_rows(job: Job, rounds: int) -> list[Row]:
    """The same model with a large vocabulary."""
    turns = measured(job, {"plain": (Plain,), "ours": (Ours,)}, rounds)
    what = f"vocabulary {job.vocabulary:,}, batch {job.batch}"
    return [speed_row(turns, "ours", "plain", job, what), memory_row(turns, "ours", "plain", what, 0.7)]


def real_rows(job: Job, rounds: int) -> list[Row]:
    """Qwen2.5-VL-3B's sizes."""
    turns = measured(job, {"plain": (Plain,), "ours": (Ours,)}, rounds)
    what, tokens = f"Qwen2.5-VL-3B's sizes, batch {job.batch}", turns["ours"][0].tokens
    seconds = {way: median_of(own, _seconds) for way, own in turns.items()}
    ratio = median_ratio(turns, "plain", "ours", _seconds)
    rows = [
        Row(f"{what}: tokens", *(f"{tokens / seconds[way]:,.0f}/s" for way in ("ours", "plain")), ratio),
        memory_row(turns, "ours", "plain", what),
    ]
    name = torch.cuda.get_device_name() if job.device == "cuda" else job.device
    peak = next((rate for part, rate in PEAK.items() if part in name), math.nan)
    used = {way: turns["ours"][0].flops / seconds[way] for way in turns}
    if math.isnan(peak):
        cells = (f"{used[way] / 1e12:.1f} TFLOP/s" for way in ("ours", "plain"))
        return [*rows, Row(f"{what}: model FLOPs (peak of {name} unknown)", *cells, ratio)]
    cells = (f"{used[way] / peak:.1%}" for way in ("ours", "plain"))
    return [*rows, Row(f"{what}: model FLOPs of {name}'s {peak / 1e12:.0f} TFLOP/s", *cells, ratio)]


def table(rows: Sequence[Row], title: str) -> Table:
    """Targets beside what was measured."""
    shown = Table("what", title=title, title_justify="left")
    for heading in ("the zoo", "other", "ratio", "target"):
        shown.add_column(heading, justify="right")
    shown.add_column("")
    for row in rows:
        shown.add_row(*row.cells())
    return shown


def _seconds(turn: Turn) -> float:
    return turn.seconds


def _megabytes(turn: Turn) -> float:
    return turn.megabytes
