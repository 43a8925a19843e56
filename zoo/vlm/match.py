"""MatchStage: stage 1 of IIR-VLM. The model learns to say which image of a gallery shows the instance of a query."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import zoo
from zoo.categories import find_category
from zoo.contracts import FusionAdapter, IdentityEncoder
from zoo.distributed import mean_over_ranks
from zoo.module import Optim
from zoo.vlm.batch import VLMBatch
from zoo.vlm.cache.features import model_key
from zoo.vlm.cache.towers import tower_key
from zoo.vlm.fused import FusedVLM
from zoo.vlm.gallery_stage import GalleryStage
from zoo.vlm.loading import load_vlm
from zoo.vlm.processor import Detection, VLMProcessor

_MADE_OF = "made_of"


class MatchStage(GalleryStage):
    """Stage 1 (IIR-VLM, sec. 3.3): in-context matching, answered as `[Pet 3]`.

    The language model, the vision tower and the experts are frozen; the projector and an adapter for each expert
    train, on the answer's tokens only.

    Args:
        vlm: name on the shelf, folder or hub id of the vision-language model.
        experts: category -> card of its expert; null for none.
        fusion: makes an adapter from (width of a token, width of an expert's vector); null for none.
        before_projector: where identities are added: before the projector, or after it.
        patch_tokens: give adapters the experts' patch tokens instead of one vector.
        dtype: type of the frozen model's weights.
        attention: how the frozen model attends: sdpa, eager or flash_attention_2.
        gradient_checkpointing: compute the language model's activations again in the backward pass, to save memory.
        min_tokens: fewest tokens of an image.
        max_tokens: most tokens of an image.
        gate_lr: learning rate of the adapters' gates, which start at 0; not decayed.
        cache: keep the features of frozen towers on disk, so that each image is seen once only: true for
            `features` in the zoo's `home`, or a folder; null runs the towers in every step.
        detector: class of what finds instances in images without a box: an RGB image goes in, `Detection`s come out;
            null shows experts the whole image.
        writes: whether a test also lets the model write its answers, beside scoring the options.
        optim: optimiser and schedule.
        freeze: what does not train either, by name; `*` matches anything.
    """

    def __init__(
        self,
        vlm: str,
        experts: dict[str, str] | None = None,
        fusion: Callable[[int, int], FusionAdapter] | None = None,
        before_projector: bool = True,
        patch_tokens: bool = False,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa",
        gradient_checkpointing: bool = False,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        gate_lr: float = 1e-2,
        cache: bool | str | None = None,
        detector: Callable[[Image.Image], Sequence[Detection]] | None = None,
        writes: bool = True,
        optim: Optim = Optim(lr=1e-4, warmup=0.03),  # noqa: B008  (frozen)
        freeze: list[str] | None = None,
    ) -> None:
        super().__init__(optim, freeze, writes, cache)
        self.save_plain_hyperparameters()
        self.vlm_name, self.expert_names = vlm, dict(experts or {})
        self.make_adapter = fusion and (lambda width, identity: fusion(width, identity))
        self.before_projector, self.patch_tokens = before_projector, patch_tokens
        self.dtype_name, self.attention, self.gradient_checkpointing = dtype, attention, gradient_checkpointing
        self.token_budget = (min_tokens, max_tokens)
        self.gate_lr, self.detector = gate_lr, detector

    # ------------------------------------------------------------------ parts

    def configure_model(self) -> None:
        """Load the model and the experts, and make the adapters."""
        if hasattr(self, "fused"):
            return
        vlm, processor = load_vlm(self.vlm_name, self.dtype_name, self.attention)
        if self.gradient_checkpointing:
            vlm.gradient_checkpointing_enable({"use_reentrant": False})
        experts = {category: self._load_expert(category, card) for category, card in self.expert_names.items()}
        self.made_of = {"vlm": model_key(vlm)}
        for category, expert in experts.items():
            self.made_of[category] = tower_key(expert, asdict(find_category(category).crop))
        with self.seeded():
            self.fused = FusedVLM(vlm, experts, self.make_adapter, self.before_projector, self.patch_tokens)
        self.batcher = VLMProcessor(
            processor,
            self.fused.family,
            vlm.config,
            *self.token_budget,
            experts={category: expert.transform for category, expert in experts.items()},
            detector=self.detector,
        )
        self.apply_freezing()

    @staticmethod
    def _load_expert(category: str, card: str) -> IdentityEncoder:
        find_category(category)
        expert = zoo.load(card)
        if not isinstance(expert, IdentityEncoder):
            raise ValueError(
                f"experts.{category}: {card} is a {type(expert).__name__}, no identity encoder. Name an expert's card."
            )
        return expert

    def lr_multipliers(self) -> dict[str, float]:
        return {"fused.adapters.*.gate": self.gate_lr / self.optim.lr}

    # ------------------------------------------------------------------ what a checkpoint holds

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Only what was trained; of what was not, the hash."""
        trained = self._trained
        checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name in trained}
        checkpoint[_MADE_OF] = self.made_of

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: trained with other frozen parts or it does not say with which, or tensors are missing, left
                over or of another shape.
        """
        if _MADE_OF not in checkpoint:
            raise ValueError(
                "The checkpoint does not say which model and experts it was trained with. "
                "Give one that a run of recipes.vlm_stage1 has saved."
            )
        for part, key in checkpoint[_MADE_OF].items():
            if part not in self.made_of:
                raise ValueError(
                    f"The checkpoint was trained with an expert for {part}, and model.experts names "
                    f"{', '.join(self.expert_names) or 'none'}. Name that expert, too."
                )
            if self.made_of[part] != key:
                name = self.vlm_name if part == "vlm" else self.expert_names[part]
                raise ValueError(
                    f"The checkpoint was trained with another {part} than {name}: that had the hash {key[:12]}, this "
                    f"has {self.made_of[part][:12]}. Name the one that it was trained with, and its model.dtype."
                )
        frozen = {name: tensor for name, tensor in self.state_dict().items() if name not in self._trained}
        checkpoint["state_dict"] = frozen | checkpoint["state_dict"]
        super().on_load_checkpoint(checkpoint)

    @property
    def _trained(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    # ------------------------------------------------------------------ steps

    def training_step(self, batch: VLMBatch, batch_idx: int) -> Tensor:
        seen = self.see(batch)
        batch.drop_pixels()
        logits, labels = self.fused.answer_logits(batch, seen)
        loss = mean_over_ranks(F.cross_entropy(logits.float(), labels, reduction="none"))
        if not torch.isfinite(loss):
            names = "\n  ".join(example.query.path for example in batch.examples)
            raise ValueError(
                f"The loss is nan or infinite at step {self.global_step}, in conversations with these queries:\n  "
                f"{names}\nLook at them; else lower model.optim.lr, or clip gradients (trainer.gradient_clip_val)."
            )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.examples))
        adapters: Any = self.fused.adapters
        for category, adapter in adapters.items():
            if adapter.gate is not None:
                self.log(f"gate/{category}", adapter.gate.detach())
        return loss
