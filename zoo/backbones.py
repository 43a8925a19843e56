"""Encoders on timm trunks: any architecture of timm, with its own transform and width."""

from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.contracts import IdentityEncoder
from zoo.transforms import Transform


class TimmEncoder(IdentityEncoder):
    """A timm trunk, pooled, followed by a BNNeck.

    The BNNeck (Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification", 2019) is a
    BatchNorm without a bias: the triplet loss sees the features before it, classifier and inference those after.

    Args:
        backbone: name of a timm architecture, `arch.tag` or a hub id (`hf-hub:user/model`).
        pretrained: start from published weights; needs them in the local hub cache or a network.
        size: input height and width in pixels, or one number for both; null takes the backbone's own.
        pool: pooling that timm knows for this backbone (avg, max, avgmax, token, map); null takes its own.
        neck: bnneck, or null to use the pooled features as they are.
        options: what else the architecture takes, such as drop_path_rate or output_stride.

    Raises:
        ValueError: a backbone, pool, size or option that timm does not know or cannot build.
    """

    def __init__(
        self,
        backbone: str = "mobilenetv3_small_050",
        pretrained: bool = False,
        size: int | tuple[int, int] | None = None,
        pool: str | None = None,
        neck: Literal["bnneck"] | None = "bnneck",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._init_args: dict[str, Any] = {"backbone": backbone, "size": size, "pool": pool, "neck": neck}
        self._init_args["options"] = options
        self.trunk = create_trunk(backbone, pretrained, size, pool, options)
        self.transform = trunk_transform(self.trunk, size)
        self.embed_dim = _pooled_width(self.trunk, self.transform.size)
        self.bnneck = nn.BatchNorm1d(self.embed_dim) if neck == "bnneck" else None
        if self.bnneck is not None:
            self.bnneck.bias.requires_grad_(False)
        # Depthwise convolutions on a CPU, and mixed precision on a GPU, are faster with channels last.
        self.to(memory_format=torch.channels_last)

    def init_args(self) -> dict[str, Any]:
        return dict(self._init_args)

    def features(self, images: Tensor) -> Tensor:
        return self.trunk(images.contiguous(memory_format=torch.channels_last))

    def neck(self, features: Tensor) -> Tensor:
        return features if self.bnneck is None else self.bnneck(features)

    def tokens(self, images: Tensor) -> Tensor:
        """What the trunk gives for each place of an image, before the neck.

        A transformer's patch tokens, class and register tokens left out; or a map's places row by row, each through
        the layers that stand between pooling and `features`, as if the map had no other. Where these are linear, as
        without any, and the pooling is a mean, the mean of the tokens is `features`.

        Args:
            images: (B, 3, H, W), normalised by `transform`.

        Returns:
            (B, M, embed_dim)

        Raises:
            TypeError: a trunk that gives no tokens of the width of its features.
        """
        trunk: Any = self.trunk
        found = trunk.forward_features(images.contiguous(memory_format=torch.channels_last))
        says_which = hasattr(trunk, "num_prefix_tokens") or not hasattr(trunk, "cls_token")
        match getattr(found, "ndim", 0):
            case 3 if says_which:
                patches = found[:, getattr(trunk, "num_prefix_tokens", 0) :]
                tokens = getattr(trunk, "fc_norm", nn.Identity())(patches)
            case 4:
                last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
                places = found if last else found.permute(0, 2, 3, 1)
                alone = places.reshape(-1, 1, 1, places.shape[3])
                head = trunk.forward_head(alone if last else alone.permute(0, 3, 1, 2), pre_logits=True)
                tokens = head.view(*places.shape[:3], head.shape[-1]).flatten(1, 2)
            case _:
                tokens = None
        if tokens is None or tokens.shape[2] != self.embed_dim:
            width = "none" if tokens is None else f"such of {tokens.shape[2]}"
            raise TypeError(
                f"{self._init_args['backbone']!r} with pool={self._init_args['pool']!r} gives no tokens of width "
                f"{self.embed_dim}, only {width}. Use an adapter that takes a vector, or another backbone or pool."
            )
        return tokens

    def resize(self, size: int | tuple[int, int]) -> None:
        """Take images of another size from now on; a transformer's position embeddings are resampled.

        Args:
            size: height and width in pixels, or one number for both.

        Raises:
            ValueError: a size that does not divide into the trunk's patches.
        """
        _check_patches_fit(str(self._init_args["backbone"]), self.trunk, size)
        height, width = (size, size) if isinstance(size, int) else size
        set_input_size: Any = getattr(self.trunk, "set_input_size", None)
        if set_input_size is not None:
            set_input_size(img_size=(height, width))
        self.transform = replace(self.transform, size=(height, width))
        self.threshold = None  # similarities at another size are others
        self._init_args["size"] = size if isinstance(size, int) else list(size)

    def no_weight_decay(self) -> set[str]:
        """What timm spares from decay in this trunk: position embeddings, class tokens."""
        spared: Any = getattr(self.trunk, "no_weight_decay", set)
        return {f"trunk.{name}" for name in spared()}

    def layer_rates(self, decay: float) -> dict[str, float]:
        """Name of each trunk parameter -> rate multiple, `decay` once for every layer further from the output."""
        from timm.models import group_parameters

        matcher: Any = self.trunk.group_matcher
        depth: dict[str, int] = group_parameters(self.trunk, matcher(coarse=False), reverse=True)
        deepest = max(depth.values()) + 1  # the neck stands above the last layer
        return {f"trunk.{name}": decay ** (deepest - layer) for name, layer in depth.items()}


def create_trunk(
    backbone: str,
    pretrained: bool = False,
    size: int | tuple[int, int] | None = None,
    pool: str | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """A timm model without its classifier.

    Raises:
        ValueError: what timm does not know or cannot build, with the nearest known names.
    """
    import timm

    known = timm.list_models(pretrained=False)
    is_hub = backbone.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    if not is_hub and backbone.split(".")[0] not in known:
        near = get_close_matches(backbone, known, n=3, cutoff=0.5)
        hint = f"Did you mean {', '.join(near)}?" if near else "`timm.list_models()` lists them."
        raise ValueError(f"Unknown backbone {backbone!r}: timm {timm.__version__} has no such architecture. {hint}")
    arguments: dict[str, Any] = {**(options or {}), "pretrained": pretrained, "num_classes": 0}
    if pool is not None:
        arguments["global_pool"] = pool
    if size is not None and _takes_img_size(backbone):
        arguments["img_size"] = size
    try:
        trunk = timm.create_model(backbone, **arguments)
    except (RuntimeError, AssertionError, TypeError, OSError) as error:
        raise ValueError(
            f"timm could not build backbone {backbone!r} with pool={pool!r}, size={size!r}, options={options!r}, "
            f"pretrained={pretrained}: {error}. Choose a pool and size that this backbone offers"
            + (", or set pretrained to false where its weights cannot be had." if pretrained else ".")
        ) from error
    _check_patches_fit(backbone, trunk, size)
    return trunk


def trunk_transform(trunk: nn.Module, size: int | tuple[int, int] | None = None) -> Transform:
    """The backbone's own mean, std, interpolation and, unless given, size."""
    import timm

    config = timm.data.resolve_model_data_config(trunk)
    height, width = config["input_size"][1:] if size is None else (size, size) if isinstance(size, int) else size
    return Transform((height, width), tuple(config["mean"]), tuple(config["std"]), config["interpolation"])


def _takes_img_size(backbone: str) -> bool:
    """Whether the architecture fixes its input size when it is built, as transformers do."""
    import inspect

    import timm

    if backbone.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return "vit" in backbone.lower()
    config = timm.get_pretrained_cfg(backbone.split(".")[0], allow_unregistered=True)
    if config is not None and getattr(config, "fixed_input_size", False):
        return True
    entry = timm.model_entrypoint(backbone.split(".")[0])
    return "img_size" in inspect.signature(entry).parameters


def _check_patches_fit(backbone: str, trunk: nn.Module, size: int | tuple[int, int] | None) -> None:
    patch = getattr(getattr(trunk, "patch_embed", None), "patch_size", None)
    if size is None or patch is None:
        return
    sides = (size, size) if isinstance(size, int) else size
    if any(side % step for side, step in zip(sides, patch, strict=True)):
        raise ValueError(
            f"size {size} does not divide into the {patch[0]}x{patch[1]} patches of {backbone!r}, pixels would be "
            f"lost. Choose multiples of {patch[0]}, such as {sides[0] // patch[0] * patch[0] or patch[0]}."
        )


def _pooled_width(trunk: nn.Module, size: tuple[int, int]) -> int:
    """Width of the trunk's output, measured: pooling such as catavgmax changes it."""
    was_training = trunk.training
    with torch.no_grad():
        width = trunk.eval()(torch.zeros(1, 3, *size)).shape[1]
    trunk.train(was_training)
    return int(width)
