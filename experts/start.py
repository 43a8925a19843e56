"""The encoder that training starts from: that of a card, or a new one on a timm backbone."""

import logging
from typing import Any, Literal

from zoo.backbones import TimmEncoder
from zoo.cards import load
from zoo.contracts import IdentityEncoder
from zoo.evaluation.evaluation import UNTRAINED

log = logging.getLogger(__name__)


def starting_encoder(
    init_from: str | None,
    backbone: str | None,
    pretrained: bool,
    size: int | tuple[int, int] | None,
    pool: str | None,
    neck: Literal["bnneck"] | None,
    options: dict[str, Any] | None = None,
) -> IdentityEncoder:
    """The encoder of a card if one is named, else a new one on a timm backbone; see `experts.expert.Expert`.

    Raises:
        ValueError: the card is not of an identity encoder, or an architecture is asked for beside it.
    """
    if init_from is None:
        return TimmEncoder(backbone or "mobilenetv3_small_050", pretrained, size, pool, neck, options)
    encoder = load(init_from)
    asked = {"backbone": backbone, "pretrained": pretrained or None, "pool": pool, "options": options}
    ignored = ", ".join(f"{key} {value}" for key, value in asked.items() if value is not None)
    if ignored:
        raise ValueError(
            f"init_from {init_from} brings its own architecture, {ignored} would be ignored. "
            "Set model.init_from to null, or leave these out."
        )
    if not isinstance(encoder, IdentityEncoder):
        raise ValueError(
            f"init_from: {init_from} is a {type(encoder).__name__}, not an encoder. Name an encoder's card."
        )
    if size is not None and encoder.transform.size != ((size, size) if isinstance(size, int) else tuple(size)):
        log.info("%s takes images of %s x %s; here they are %s.", init_from, *encoder.transform.size, size)
        encoder.resize(size)
    return encoder


def start_name(init_from: str | None, pretrained: bool) -> str:
    """What the starting encoder is called where it is compared with the trained one."""
    return init_from or ("pretrained" if pretrained else UNTRAINED)
