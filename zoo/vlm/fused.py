"""FusedVLM: a vision-language model whose image tokens receive the identity vectors of experts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel

from zoo.contracts import FusionAdapter, IdentityEncoder
from zoo.module import ZooModule
from zoo.vlm.batch import IGNORED, VLMBatch
from zoo.vlm.families import family_of

_ROWS_AT_ONCE = 2**14  # of a head
_CACHE_NAMES = ("cache", "past_key_values")  # of keys and values; the latter in transformers before 5.24


@dataclass
class ExpertFeatures:
    """What an expert gives for its crops of a batch.

    Args:
        vectors: (J, M, E) M identity vectors or patch tokens of each crop.
        image: (J,) int64, which image of the batch each crop is of; several may share one.
    """

    vectors: Tensor
    image: Tensor


@dataclass
class TowerFeatures:
    """What the vision tower and the experts give for the images of a batch.

    Args:
        tokens: (T, C) tokens before the projector, image after image.
        patches: (I,) int64 tokens of each image.
        experts: category -> features of its expert's crops.
    """

    tokens: Tensor
    patches: Tensor
    experts: dict[str, ExpertFeatures] = field(default_factory=dict)


class FusedVLM(ZooModule):
    """A vision-language model with experts (IIR-VLM, sec. 3.2).

    The projector is taken out of the model and stands here, beside an adapter for each expert. What of all this trains
    is decided by the root of a run, see `VLMStage`.

    Args:
        vlm: model of a known family, see `zoo.vlm.families`.
        experts: category -> encoder of its instances.
        fusion: makes an adapter from (width of a token, width of an expert's vector); None for no fusion at all.
        before_projector: whether identities are added to the tokens that go into the projector, or to those that
            come out of it.
        patch_tokens: give adapters the experts' patch tokens instead of one vector.
    """

    def __init__(
        self,
        vlm: PreTrainedModel,
        experts: Mapping[str, IdentityEncoder] | None = None,
        fusion: Callable[[int, int], FusionAdapter] | None = None,
        before_projector: bool = True,
        patch_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.family = family_of(vlm.config)
        self.before_projector, self.patch_tokens = before_projector, patch_tokens
        self.projector = self.family.take_projector(vlm).float()
        self.vlm = vlm
        self.experts = nn.ModuleDict(experts or {})
        width = self.family.widths(vlm.config)[0 if before_projector else 1]
        self.adapters = nn.ModuleDict()
        for category, expert in (experts or {}).items():
            if fusion is not None:
                self.adapters[category] = fusion(width, expert.embed_dim)

    def set_gradient_checkpointing(self, mode: bool) -> None:
        """Let the layers that compute their activations again do so, or not: transformers asks their `training`, also
        where they are frozen and otherwise in eval mode."""
        for module in self.vlm.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = mode

    # ------------------------------------------------------------------ images

    def run_towers(self, batch: VLMBatch) -> TowerFeatures:
        """Run the vision tower and the experts; without gradients where they are frozen."""
        tokens = self.family.tower_tokens(self.vlm, batch.vision)
        experts = {
            category: ExpertFeatures(self.identities(category, crops.pixels), crops.image)
            for category, crops in batch.experts.items()
            if category in self.experts
        }
        return TowerFeatures(tokens, self.patches(batch), experts)

    def patches(self, batch: VLMBatch) -> Tensor:
        """(I,) int64 tokens of each image before the projector."""
        return batch.image_tokens * self.family.group(self.vlm.config)

    def identities(self, category: str, pixels: Tensor) -> Tensor:
        """What an expert gives for its crops.

        Args:
            category: which expert.
            pixels: (J, 3, H, W) uint8, of the expert's size.

        Returns:
            (J, M, E) float32; M = 1 and of unit norm, but for patch tokens.
        """
        expert = cast(IdentityEncoder, self.experts[category])
        if not len(pixels):
            return torch.zeros(0, 1, expert.embed_dim, device=pixels.device)
        trains = any(parameter.requires_grad for parameter in expert.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            images = expert.transform.normalise(pixels)
            if self.patch_tokens:
                return expert.tokens(images).float()
            return F.normalize(expert(images).float(), dim=1)[:, None]

    def image_features(self, batch: VLMBatch, features: TowerFeatures) -> Tensor:
        """(T', D) what the language model reads in place of the images' placeholders: F = f + the sum of the adapters'
        updates of the same f (eq. 4), before or after the projector."""
        tokens = features.tokens.float()
        if self.before_projector:
            return self._project(tokens + self._updates(tokens, features.patches, features))
        projected = self._project(tokens)
        return projected + self._updates(projected, batch.image_tokens, features)

    def attention(self, batch: VLMBatch, features: TowerFeatures) -> dict[str, Tensor]:
        """Category -> (T, M) how much each token attends to each identity vector, see the adapter."""
        tokens, counts = features.tokens.float(), features.patches
        if not self.before_projector:
            tokens, counts = self._project(tokens), batch.image_tokens
        return {
            category: self._adapted(category, tokens, counts, features, return_attention=True)[1]
            for category in self.adapters
            if category in features.experts
        }

    def _project(self, tokens: Tensor) -> Tensor:
        return self.family.project(self.projector, tokens)

    def _updates(self, tokens: Tensor, counts: Tensor, features: TowerFeatures) -> Tensor | float:
        """The sum over all adapters; also those without an image here take part, by a term that weighs nothing: under
        DDP every parameter needs a gradient on every rank."""
        return sum(self._adapted(category, tokens, counts, features)[0] for category in self.adapters)

    def _adapted(
        self, category: str, tokens: Tensor, counts: Tensor, features: TowerFeatures, return_attention: bool = False
    ) -> tuple[Tensor, Tensor]:
        adapter = cast(FusionAdapter, self.adapters[category])
        own = features.experts.get(category)
        if own is None:
            own = ExpertFeatures(tokens.new_zeros(0, 1, adapter.identity_dim), counts.new_zeros(0))
        identity, mask = per_image(own.vectors, own.image, len(counts))
        ends = F.pad(counts.cumsum(0), (1, 0))
        found = adapter(tokens, ends, identity, mask, return_attention=return_attention)
        return found if return_attention else (found, tokens.new_zeros(0))

    # ------------------------------------------------------------------ language

    def hidden(self, batch: VLMBatch, features: Tensor) -> Tensor:
        """(B, L, H) the language model's last hidden states."""
        with self._reading(batch, features) as inputs:
            return self.vlm.model(**inputs, use_cache=False)[0]

    def layers(self, batch: VLMBatch, features: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The last hidden states, with the hidden states and the attention of every layer; of an eager model.

        Returns:
            (B, L, H) last hidden states, (B, L, H) before the first layer and after each, (B, heads, L, L) attention.
        """
        with self._reading(batch, features) as inputs:
            read = self.vlm.model(**inputs, use_cache=False, output_attentions=True, output_hidden_states=True)
        return read[0], read.hidden_states, read.attentions

    @contextmanager
    def _reading(self, batch: VLMBatch, features: Tensor) -> Iterator[dict[str, Tensor]]:
        """What the model is called with, and the features that it takes for the images meanwhile."""
        with self.family.answer(self.vlm, features, batch.image_tokens) as stand_in:
            text = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.text}
            yield {**text, **batch.vision, **stand_in}

    def answer_logits(self, batch: VLMBatch, features: TowerFeatures) -> tuple[Tensor, Tensor]:
        """Logits of the answers' tokens only: with a large vocabulary all others are most of the memory.

        Returns:
            (A, V) logits in the model's type, and (A,) labels, for the A answer tokens of the batch in order.
        """
        return self.logits_of_answers(batch, self.hidden(batch, self.image_features(batch, features)))

    def logits_of_answers(self, batch: VLMBatch, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """`answer_logits` from the last hidden states (B, L, H)."""
        answers = batch.labels[:, 1:] != IGNORED
        return self.vlm.get_output_embeddings()(hidden[:, :-1][answers]), batch.labels[:, 1:][answers]

    @torch.no_grad()
    def generate(self, batch: VLMBatch, features: TowerFeatures, max_new_tokens: int) -> Tensor:
        """Greedy continuations (B, at most max_new_tokens) of left-padded prompts."""
        with self._reading(batch, self.image_features(batch, features)) as inputs:
            ids = cast(GenerationMixin, self.vlm).generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return ids[:, batch.input_ids.shape[1] :]

    @torch.no_grad()
    def option_scores(self, batch: VLMBatch, features: TowerFeatures, options: Tensor) -> Tensor:
        """How likely each answer is: the sum of the log-probabilities of its tokens, not normalised by their number.

        The prompts are read once; their keys and values then serve all options.

        Args:
            batch: left-padded prompts.
            features: of the same batch.
            options: (B, O, A) token ids of each prompt's options, -1 after an option's end; where a prompt has fewer
                than O options, the rest is -1 throughout.

        Returns:
            (B, O) float32, -inf where there is no option.
        """
        count, longest = options.shape[1:]
        ids, there = options.clamp(min=0).flatten(0, 1), (options >= 0).flatten(0, 1)
        mask = torch.cat([batch.attention_mask.repeat_interleave(count, 0), torch.ones_like(ids)], dim=1)
        inner, head = self.vlm.model, self.vlm.get_output_embeddings()
        with self._reading(batch, self.image_features(batch, features)) as inputs:
            positions = self.family.prompt_positions(batch.attention_mask)
            prompt = inner(**inputs, position_ids=positions, use_cache=True)
        name = next(key for key in _CACHE_NAMES if key in prompt)
        cache = prompt[name]
        cache.batch_repeat_interleave(count)
        positions = self.family.next_positions(self.vlm, mask, longest)
        after = inner(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **{name: cache})
        before = prompt[0][:, -1:].repeat_interleave(count, 0)
        logits = exact_logits(head, torch.cat([before, after[0][:, :-1]], dim=1))
        scores = logits.log_softmax(-1).gather(2, ids[..., None])[..., 0].masked_fill(~there, 0).sum(1)
        return scores.masked_fill(~there.any(1), -torch.inf).view(-1, count)


def exact_logits(head: nn.Linear, hidden: Tensor) -> Tensor:
    """A head's logits in float32, whatever its type: in bfloat16, those about 20 are 0.125 apart, and options tie.

    Args:
        head: the language model's.
        hidden: (..., H) last hidden states.

    Returns:
        (..., V) float32.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        hidden = hidden.float()
        # Piece by piece: a whole copy of a large head would take a gigabyte.
        parts = [F.linear(hidden, weight.float()) for weight in head.weight.split(_ROWS_AT_ONCE)]
        logits = torch.cat(parts, dim=-1)
    return logits if head.bias is None else logits + head.bias.float()


def per_image(identities: Tensor, image: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Crops -> images: the vectors of all crops of each image, side by side.

    Args:
        identities: (J, M, E) vectors of each crop.
        image: (J,) the image that each crop belongs to; several may share one.
        count: I, number of images.

    Returns:
        (I, S * M, E) for at most S crops an image, 0 where there is none, and which of them are there, (I, S * M) bool.
    """
    crops, vectors, width = identities.shape
    order = image.argsort(stable=True)
    at = image[order]
    slot = torch.arange(crops, device=image.device) - torch.searchsorted(at, at)
    slots = int(slot.max()) + 1 if crops else 1
    packed = identities.new_zeros(count, slots, vectors, width)
    mask = torch.zeros(count, slots, vectors, dtype=torch.bool, device=identities.device)
    packed[at, slot] = identities[order]
    mask[at, slot] = True
    return packed.flatten(1, 2), mask.flatten(1, 2)
