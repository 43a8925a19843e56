"""AnswerStage: base of the stages that learn the answers of conversations, and are scored on tasks."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import zoo
from zoo.distributed import mean_over_ranks
from zoo.module import ZooModule
from zoo.vlm.batch import VLMBatch
from zoo.vlm.evaluator import Evaluator
from zoo.vlm.fused import TowerFeatures
from zoo.vlm.stage import ImageSource, VLMStage
from zoo.vlm.tasks.task import Task


class TaskSource(ImageSource, Protocol):
    """What a stage that answers asks of its data."""

    def scored(self, split: str) -> Sequence[Task]:
        """The tasks of the loaders of val or test, in their order."""


class AnswerStage(VLMStage):
    """Learns the answers of conversations, by the cross entropy of their tokens, and is scored on the data's tasks.

    Args:
        vlm: name on the shelf, folder or hub id of the vision-language model; null for that of `init_from`.
        writes: whether a test also lets the model write its answers, where comparing options would do.
        **options: those of `VLMStage`.
    """

    def __init__(self, vlm: str | None = None, *, writes: bool = True, **options: Any) -> None:
        super().__init__(vlm=vlm, **options)
        self.writes = writes
        self._options |= {"writes": writes}

    # ------------------------------------------------------------------ training

    def training_step(self, batch: VLMBatch, batch_idx: int) -> Tensor:
        features = self.run_towers(batch)
        batch.drop_pixels()
        logits, labels = self.fused.answer_logits(batch, features)
        loss = mean_over_ranks(F.cross_entropy(logits.float(), labels, reduction="none"))
        self.check_finite(loss, batch)
        loss = loss + self.nothing()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.items))
        for category, adapter in self.fused.adapters.items():
            gate = getattr(adapter, "gate", None)
            if gate is not None:
                self.log(f"gate/{category}", gate.detach())
        return loss

    def nothing(self) -> Tensor:
        """A zero that hangs on every parameter that trains: all ranks of a run must send a gradient for each of them,
        also for what their batch does not use, such as an expert without a crop."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.stack([parameter.flatten()[:0].sum().float() for parameter in trained]).sum()

    def check_finite(self, loss: Tensor, batch: VLMBatch) -> None:
        """
        Raises:
            ValueError: a loss that is nan or infinite, with the names of the conversations.
        """
        if not torch.isfinite(loss):
            names = "\n  ".join(batch.names)
            raise ValueError(
                f"The loss is nan or infinite at step {self.global_step}, in these conversations:\n  {names}\n"
                "Look at them; else lower model.optim.lr, or clip gradients (trainer.gradient_clip_val)."
            )

    # ------------------------------------------------------------------ evaluation

    def on_fit_start(self) -> None:
        """
        Raises:
            ValueError: a checkpoint waits for the score of a single task, and there are several.
        """
        super().on_fit_start()
        tasks = self._scored("val")
        for checkpoint in self.trainer.checkpoint_callbacks if len(tasks) > 1 else []:
            monitor = getattr(checkpoint, "monitor", None)
            if monitor in {f"val/{task.metric()}" for task in tasks}:
                known = ", ".join(f"val/{task.name}/{task.metric()}" for task in tasks)
                raise ValueError(f"monitor is {monitor}, but {len(tasks)} tasks are scored. Choose one of: {known}.")

    def on_validation_epoch_start(self) -> None:
        self.evaluator = Evaluator(self._scored("val"), "val", self, writes=False)

    def on_test_epoch_start(self) -> None:
        self.evaluator = Evaluator(self._scored("test"), "test", self, self.writes)

    def _scored(self, split: str) -> Sequence[Task]:
        return () if self._source is None else cast(TaskSource, self._source).scored(split)

    def validation_step(self, batch: VLMBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def test_step(self, batch: VLMBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, dataloader_idx)

    def _evaluate(self, batch: VLMBatch, task: int) -> None:
        if batch.items:  # else all of them were left out
            self.evaluator.update(task, batch, self.run_towers(batch))

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, split: str) -> None:
        self.report(split, self.evaluator.compute(), tuple({task.metric() for task in self.evaluator.tasks}))

    def baselines(self) -> dict[str, ZooModule]:
        """What the trained stage is tested beside: the model as it was, and the stage that it went on from."""
        bare: dict[str, Any] = dict.fromkeys(("fusion", "lora", "init_from", "freeze", "unfreeze")) | {"experts": {}}
        base: dict[str, ZooModule] = {"base model": self.variant(vlm=self.vlm_name, **bare)}
        return base if self.init_from is None else base | {self.init_from: self.variant()}

    def peer(self, card: str) -> ZooModule:
        """Another trained stage, to be tested beside this one.

        Args:
            card: name, folder or hub id.

        Raises:
            ValueError: it does not answer.
        """
        stage = zoo.load(card)
        if not isinstance(stage, AnswerStage):
            raise ValueError(f"compare_with: {card} is a {type(stage).__name__}, which answers nothing. Name a stage.")
        return stage

    # ------------------------------------------------------------------ answers

    @property
    def vector_experts(self) -> Collection[str]:
        """Categories whose expert gives one identity vector a crop."""
        return () if self.fused.patch_tokens else tuple(self.fused.experts)

    def option_scores(self, batch: VLMBatch, features: TowerFeatures, options: Sequence[Sequence[str]]) -> Tensor:
        """Log-likelihood of options: the sum over an option's tokens, without the end of turn.

        Args:
            batch: B prompts for generation.
            features: of the same batch.
            options: of each prompt.

        Returns:
            (B, O) float32, -inf where a prompt has fewer than O options.
        """
        rows = [pad_sequence([torch.tensor(ids) for ids in self._ids(texts)], True, -1) for texts in options]
        shape = [max(row.shape[axis] for row in rows) for axis in (0, 1)]
        padded = [F.pad(row, (0, shape[1] - row.shape[1], 0, shape[0] - row.shape[0]), value=-1) for row in rows]
        return self.fused.option_scores(batch, features, torch.stack(padded).to(self.device))

    def write(self, batch: VLMBatch, features: TowerFeatures, longest: Sequence[str], spare: int = 4) -> list[str]:
        """The text that the model writes after each prompt, greedily.

        Args:
            batch: prompts for generation.
            features: of the same batch.
            longest: texts; at most as many tokens are written as the longest of them takes, and `spare` more.
            spare: further tokens.
        """
        most = max(map(len, self._ids(longest)), default=0) if longest else 0
        ids = self.fused.generate(batch, features, most + spare)
        return self.batcher.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids as `VLMProcessor` gives them to an answer: each text by itself, without special tokens."""
        return self.batcher.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
