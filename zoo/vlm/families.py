"""Families of vision-language models: where their parts are, how many tokens an image takes, how features get in.

The trainable projector is taken out of the Hugging Face model and a pass-through put in its place. Its own
`get_image_features` then yields the frozen tower's tokens in natural order; whoever calls adds to them, applies the
projector, and `answer` makes the model's forward, or its `generate`, use the result. A new family is one entry here;
nothing else in the project branches on a model's name.

The facts are those of transformers' own models (5.17 to 5.23): `modeling_qwen2_vl.py`, `modeling_qwen2_5_vl.py`,
`modeling_qwen3_vl.py`, `modeling_internvl.py`, `modeling_llava.py`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: (height, width) of images in pixels
Sizes = Sequence[tuple[int, int]]

_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class PassThrough(nn.Module):
    """Stands where the projector was: no weights, only its change of shape.

    Args:
        group: tokens that become one. Those of a group lie side by side and become one row, so that a tower that has
            reordered its groups, as Qwen2.5-VL's windows do, can still put them back.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group
        #: what the last run of the tower gave beside its tokens, as transformers has it: Qwen3-VL's DeepStack features
        self.deepstack: Any = None

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) tokens -> the same, or (T / group, group * C)."""
        return tokens if self.group == 1 else tokens.reshape(-1, self.group * tokens.shape[-1])


class PatchProjection(nn.Conv3d):
    """A convolution whose every input is one patch: as a matrix product, a third of the time on CPUs."""

    def forward(self, patches: Tensor) -> Tensor:
        """(N, channels, frames, height, width) of the kernel's size -> (N, C)."""
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


@dataclass(frozen=True)
class Family:
    """What the project must know of a family of vision-language models.

    T tokens of I images leave the vision tower, C wide; T' tokens leave the projector, D wide. Images are packed one
    after another. `model` is the whole Hugging Face model with its language-model head, `config` its configuration,
    `vision` the image fields of its processor.

    Args:
        name: `config.model_type`.
        projector: where the projector is in the model.
        tower: where the vision tower is; a projector may be inside of it.
        widths: config -> C and D.
        group: config -> how many tokens of the tower become one token of the language model.
        count: config and vision fields -> (I,) tokens of each image in the language model.
        grid: processor, its image options and image sizes -> the vision fields that need no pixels.
        tokens: processor, config, vision fields without pixels, number of images -> language-model tokens of each.
        image_options: processor, least and most tokens of an image -> options of the processor's image processor.
        wrap: processor -> what its prompt has directly before and after the placeholders of an image.
        pack: features (T', D) and tokens of each image -> the form that the model's forward expects.
        token_types: whether the model wants `mm_token_type_ids`, 1 where a token stands for an image.
        grid_positions: whether the tokens of an image take two-dimensional positions, so that the positions of the text
            after it lag behind the number of tokens. The model then computes the positions of a prompt itself.
        deepstack: whether the tower feeds further features to the language model's layers. They are passed on as they
            are: only the main stream can be changed, and features of such a family cannot be cached.
        towers: `model_type` of the vision towers that the entry holds for; () for any.
        language_modules: modules of the language model.
        lora_targets: names of the language model's linear layers; the vision tower may have some of the same name.
    """

    name: str
    projector: str
    tower: str
    widths: Callable[[Any], tuple[int, int]]
    group: Callable[[Any], int]
    count: Callable[[Any, Mapping[str, Tensor]], Tensor]
    grid: Callable[[Any, Mapping[str, Any], Sizes], dict[str, Tensor]]
    tokens: Callable[[Any, Any, Mapping[str, Tensor], int], list[int]]
    image_options: Callable[[Any, int | None, int | None], dict[str, Any]]
    wrap: Callable[[Any], tuple[str, str]] = lambda processor: ("", "")
    pack: Callable[[Tensor, list[int]], Any] = torch.split
    token_types: bool = False
    grid_positions: bool = False
    deepstack: bool = False
    towers: tuple[str, ...] = ()
    language_modules: tuple[str, ...] = ("model.language_model", "lm_head")
    lora_targets: tuple[str, ...] = _LINEAR

    def __reduce__(self) -> tuple[Callable[[str], "Family"], tuple[str]]:
        return _family_by_name, (self.name,)  # by name: its functions cannot be sent to another process

    # ------------------------------------------------------------------ parts

    def take_projector(self, model: nn.Module) -> nn.Module:
        """Detach the projector and leave a `PassThrough` in its place. Patches are embedded faster from then on.

        Raises:
            ValueError: it has been taken already.
        """
        projector = model.get_submodule(self.projector)
        if isinstance(projector, PassThrough):
            raise ValueError(f"The projector of this {self.name} has been taken already. Use the one that was given.")
        _put(model, self.projector, PassThrough(self.group(model.config)))
        self._embed_patches(model, nn.Conv3d, PatchProjection)
        return projector

    def put_projector(self, model: nn.Module, projector: nn.Module) -> None:
        """Put a projector back; the model is then one of Hugging Face's again."""
        _put(model, self.projector, projector)
        self._embed_patches(model, PatchProjection, nn.Conv3d)

    def _embed_patches(self, model: nn.Module, before: type[nn.Conv3d], after: type[nn.Conv3d]) -> None:
        """Change how patches are embedded; of the Qwens, whose processors cut images into patches."""
        for module in model.get_submodule(self.tower).modules():
            if type(module) is before:
                module.__class__ = after

    def placeholder(self, processor: Any) -> int:
        """Id of the token that stands for a token of an image."""
        return int(processor.image_token_id)

    def lora_pattern(self, names: Sequence[str] | None = None) -> str:
        """Regular expression of the linear layers of the language model that LoRA adapts; the vision tower may have
        layers of the same name, which it leaves out.

        Args:
            names: of the layers; None for all `lora_targets`.
        """
        modules = "|".join(map(re.escape, self.language_modules))
        return rf"({modules})\..*({'|'.join(self.lora_targets if names is None else names)})"

    # ------------------------------------------------------------------ positions

    def prompt_positions(self, mask: Tensor) -> Tensor | None:
        """(B, L) positions of left-padded tokens; None where the model computes them itself.

        Args:
            mask: (B, L), 0 where padded.
        """
        return None if self.grid_positions else (mask.cumsum(1) - 1).clamp(min=0)

    def next_positions(self, model: nn.Module, mask: Tensor, count: int) -> Tensor:
        """Positions of the last `count` tokens, after a prompt that the model has just read.

        Args:
            model: its `rope_deltas` are those of the prompt, (B, 1) or for each row of the mask.
            mask: (B * repeats, L) of all tokens, 0 where padded.
            count: number of tokens.

        Returns:
            (B * repeats, count), or (3, B * repeats, count) for a family with grid positions.
        """
        positions = mask.cumsum(1)[:, -count:] - 1
        lag = self._inner(model).rope_deltas if self.grid_positions else None
        if lag is None:
            return positions
        return (positions + lag.repeat_interleave(len(mask) // len(lag), 0)).expand(3, -1, -1)

    # ------------------------------------------------------------------ counts

    def image_tokens(self, config: Any, vision: Mapping[str, Tensor]) -> Tensor:
        """(I,) int64, tokens of each image in the language model; they sum to T'."""
        return self.count(config, vision)

    def patches(self, config: Any, vision: Mapping[str, Tensor]) -> Tensor:
        """(I,) int64, tokens of each image before the projector; they sum to T."""
        return self.count(config, vision) * self.group(config)

    # ------------------------------------------------------------------ features in, answers out

    def tower_tokens(self, model: nn.Module, vision: Mapping[str, Tensor]) -> Tensor:
        """Run the vision tower; the projector must have been taken.

        Without gradients, unless something in the tower trains. For a family with DeepStack it also keeps these
        features in the model, for the next `answer`.

        Returns:
            (T, C), image after image, each in the order in which the projector merges them.

        Raises:
            ValueError: the projector is still in the model, or the tower gave another number of tokens than expected.
        """
        stand_in, inner = self._stand_in(model), self._inner(model)
        width, _ = self.widths(model.config)
        if not vision:  # a batch of text
            return torch.zeros(0, width, dtype=inner.dtype, device=inner.device)
        trains = any(parameter.requires_grad for parameter in model.get_submodule(self.tower).parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            output = inner.get_image_features(**vision, return_dict=True)
        tokens = torch.cat([part.reshape(-1, width) for part in output.pooler_output])
        expected = int(self.patches(model.config, vision).sum())
        if len(tokens) != expected:
            raise ValueError(
                f"The tower of this {self.name} gave {len(tokens)} tokens of {width} numbers where its configuration "
                f"gives {expected}. Check its vision_config, or mend its entry in zoo/vlm/families.py."
            )
        stand_in.deepstack = getattr(output, "deepstack_features", None) if self.deepstack else None
        return tokens

    def project(self, projector: nn.Module, tokens: Tensor) -> Tensor:
        """(T, C) tokens of the tower -> (T', D) in the language model, packed in natural order."""
        return projector(tokens.contiguous())

    @contextmanager
    def answer(self, model: nn.Module, features: Tensor, counts: Tensor | Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """Within it, the model takes these features for its images, in `forward` and in `generate`.

        It asks for them when it is given `pixel_values`. What is yielded holds an empty stand-in for those where
        there are none, since the features came from a cache:

            with family.answer(model, features, batch.image_tokens) as stand_in:
                model(input_ids=..., **{**batch.vision, **stand_in})

        Args:
            features: (T', D), already projected.
            counts: (I,), tokens of each image; they sum to T'.

        Raises:
            ValueError: counts and features do not fit, or the tower has not been run on these images.
        """
        lengths = counts.tolist() if isinstance(counts, Tensor) else list(counts)
        if sum(lengths) != len(features):
            raise ValueError(
                f"{len(features)} features do not fill the {sum(lengths)} tokens of {len(lengths)} images. "
                "Give features and counts of the same batch."
            )
        if not lengths:  # a batch of text
            yield {}
            return
        deepstack = self._deepstack_of(model, len(features))
        inner = self._inner(model)
        asked = inner.get_image_features

        @wraps(asked)  # generate reads the signature to know which fields the features are made from
        def answered(*given: Any, **named: Any) -> Any:
            return _output(self.pack(features, lengths), deepstack)

        before = vars(inner).get("get_image_features")
        inner.__dict__["get_image_features"] = answered
        try:
            yield {"pixel_values": features.new_zeros(1)}
        finally:
            if before is None:
                del inner.__dict__["get_image_features"]
            else:
                inner.__dict__["get_image_features"] = before

    @staticmethod
    def _inner(model: nn.Module) -> Any:
        return model.get_submodule("model")  # without the language-model head

    def _stand_in(self, model: nn.Module) -> PassThrough:
        module = model.get_submodule(self.projector)
        if not isinstance(module, PassThrough):
            raise ValueError(f"The projector is still in this {self.name}. Call take_projector first.")
        return module

    def _deepstack_of(self, model: nn.Module, expected: int) -> Any:
        if not self.deepstack:
            return None
        found = self._stand_in(model).deepstack
        lengths = {sum(map(len, _parts(layer))) for layer in found or ()}
        if found is None or lengths - {expected}:
            raise ValueError(
                f"The DeepStack features of these {expected} tokens are missing, those of {max(lengths, default=0)} "
                "are at hand. Call tower_tokens on the same images before; features of "
                f"{self.name} cannot come from a cache."
            )
        return found


def _parts(layer: Any) -> Sequence[Tensor]:
    """The DeepStack features of one layer: a tensor in transformers 5.17, one for each image in 5.23."""
    return [layer] if isinstance(layer, Tensor) else layer


def _output(features: Any, deepstack: Any) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    if deepstack is None:
        return BaseModelOutputWithPooling(pooler_output=features)
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    return BaseModelOutputWithDeepstackFeatures(pooler_output=features, deepstack_features=deepstack)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


# ---------------------------------------------------------------------- families whose images have a grid


def _qwen_count(config: Any, vision: Mapping[str, Tensor]) -> Tensor:
    return vision["image_grid_thw"].prod(-1) // config.vision_config.spatial_merge_size**2


def _qwen_grid(processor: Any, options: Mapping[str, Any], sizes: Sizes) -> dict[str, Tensor]:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    images, limits = processor.image_processor, options["size"]
    step = images.patch_size * images.merge_size
    resized = [smart_resize(*size, step, limits["shortest_edge"], limits["longest_edge"]) for size in sizes]
    grid = [[1, height // images.patch_size, width // images.patch_size] for height, width in resized]
    return {"image_grid_thw": torch.tensor(grid, dtype=torch.int64).reshape(-1, 3)}


def _qwen_tokens(processor: Any, config: Any, vision: Mapping[str, Tensor], images: int) -> list[int]:
    return _qwen_count(config, vision).tolist()


def _qwen_options(processor: Any, least: int | None, most: int | None) -> dict[str, Any]:
    images = processor.image_processor
    area = (images.patch_size * images.merge_size) ** 2  # pixels of one token
    size = {"shortest_edge": images.size["shortest_edge"], "longest_edge": images.size["longest_edge"]}
    size |= {} if least is None else {"shortest_edge": least * area}
    size |= {} if most is None else {"longest_edge": most * area}
    return {"size": size}


def _qwen(name: str, widths: Callable[[Any], tuple[int, int]], deepstack: bool = False) -> Family:
    return Family(
        name=name,
        projector="model.visual.merger",
        tower="model.visual",
        widths=widths,
        group=lambda config: config.vision_config.spatial_merge_size**2,
        count=_qwen_count,
        grid=_qwen_grid,
        tokens=_qwen_tokens,
        image_options=_qwen_options,
        token_types=True,
        grid_positions=True,
        deepstack=deepstack,
    )


# ---------------------------------------------------------------------- families whose images all take the same


def _square(config: Any) -> int:
    """Patches of an image."""
    sides = zip(*(_pair(config.vision_config.image_size), _pair(config.vision_config.patch_size)), strict=True)
    height, width = (size // patch for size, patch in sides)
    return height * width


def _pair(value: int | Sequence[int]) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value


def _internvl_each(config: Any) -> int:
    return _square(config) // _internvl_shuffle(config)


def _internvl_shuffle(config: Any) -> int:
    """Patches that the pixel shuffle lays side by side, before the projector."""
    return int(1 / config.downsample_ratio) ** 2


def _llava_each(config: Any) -> int:
    vision = config.vision_config.model_type
    class_token = vision == "clip_vision_model"
    return _square(config) + class_token - (config.vision_feature_select_strategy == "default")


def _llava_layers(config: Any) -> int:
    return 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)


def _alike(each: Callable[[Any], int]) -> dict[str, Any]:
    """The fields of a family in which every image takes `each(config)` tokens."""

    def count(config: Any, vision: Mapping[str, Tensor]) -> Tensor:
        if "pixel_values" not in vision:
            raise ValueError(
                "Without pixel_values there is nothing to count images of this family by. Use the batch's image_tokens."
            )
        images = vision["pixel_values"]
        return torch.full((len(images),), each(config), dtype=torch.int64, device=images.device)

    return {
        "group": lambda config: 1,
        "count": count,
        "grid": lambda processor, options, sizes: {},
        "tokens": lambda processor, config, vision, images: [each(config)] * images,
    }


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _qwen("qwen2_vl", lambda config: (config.vision_config.embed_dim, config.vision_config.hidden_size)),
        _qwen("qwen2_5_vl", lambda config: (config.vision_config.hidden_size, config.vision_config.out_hidden_size)),
        _qwen(
            "qwen3_vl",
            lambda config: (config.vision_config.hidden_size, config.vision_config.out_hidden_size),
            deepstack=True,
        ),
        Family(
            name="internvl",
            projector="model.multi_modal_projector",
            tower="model.vision_tower",
            widths=lambda config: (
                config.vision_config.hidden_size * _internvl_shuffle(config),
                config.text_config.hidden_size,
            ),
            # One tile an image: a gallery of several images has no room for more.
            image_options=lambda processor, least, most: {"crop_to_patches": False},
            wrap=lambda processor: (processor.start_image_token, processor.end_image_token),
            pack=lambda features, counts: features.unflatten(0, (len(counts), -1)),
            **_alike(_internvl_each),
        ),
        Family(
            name="llava",
            projector="model.multi_modal_projector",
            tower="model.vision_tower",
            widths=lambda config: (
                config.vision_config.hidden_size * _llava_layers(config),
                config.text_config.hidden_size,
            ),
            image_options=lambda processor, least, most: {},
            towers=("clip_vision_model", "siglip_vision_model"),
            **_alike(_llava_each),
        ),
    )
}


def _family_by_name(name: str) -> Family:
    return FAMILIES[name]


def family_of(config: Any) -> Family:
    """The entry of a Hugging Face configuration.

    Raises:
        ValueError: an unknown family, or a known one with a vision tower that its entry does not fit.
    """
    name = getattr(config, "model_type", None)
    if name not in FAMILIES:
        raise ValueError(
            f"Unknown family {name!r}. Known: {', '.join(FAMILIES)}. A new one is an entry in zoo/vlm/families.py."
        )
    family = FAMILIES[name]
    tower = config.vision_config.model_type
    if family.towers and tower not in family.towers:
        raise ValueError(f"{name} with a vision tower {tower!r} is not supported. Known: {', '.join(family.towers)}.")
    return family
