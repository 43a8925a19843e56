"""Start: what training starts from, the encoder of a card or a new one on a timm backbone."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from zoo.backbones import TimmEncoder
from zoo.cards import load
from zoo.contracts import IdentityEncoder
from zoo.evaluation.evaluation import UNTRAINED

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """An encoder to go on from.

    Args:
        card: name or folder of its card.
        size: input height and width in pixels, or one number for both; null leaves the card's own.
    """

    card: str
    size: int | tuple[int, int] | None = None

    @classmethod
    def of(cls, init_from: "str | Start | Mapping[str, Any] | None") -> "Start | None":
        """What `init_from` names.

        Args:
            init_from: a card, a start, or the fields of one, as a checkpoint keeps them.
        """
        match init_from:
            case None | Start():
                return init_from
            case str():
                return cls(init_from)
            case _:
                return cls(**init_from)


def starting_encoder(
    start: Start | None,
    backbone: str | None,
    pretrained: bool,
    size: int | tuple[int, int] | None,
    pool: str | None,
    neck: Literal["bnneck"] | None,
    options: dict[str, Any] | None = None,
) -> IdentityEncoder:
    """The encoder of a card if there is a start, else a new one on a timm backbone; see `experts.expert.Expert`.

    Args:
        start: a card to go on from; None for none.
        size: goes before that of the start.
        backbone, pretrained, pool, neck, options: of a new encoder.

    Raises:
        ValueError: the card is not of an identity encoder, or an architecture is asked for beside it.
    """
    if start is None:
        return TimmEncoder(backbone or "mobilenetv3_small_050", pretrained, size, pool, neck, options)
    encoder = load(start.card)
    asked = {"backbone": backbone, "pretrained": pretrained or None, "pool": pool, "options": options}
    ignored = ", ".join(f"{key} {value}" for key, value in asked.items() if value is not None)
    if ignored:
        raise ValueError(
            f"init_from {start.card} brings its own architecture, {ignored} would be ignored. "
            "Set model.init_from to null, or leave these out."
        )
    if not isinstance(encoder, IdentityEncoder):
        raise ValueError(
            f"init_from: {start.card} is a {type(encoder).__name__}, not an encoder. Name an encoder's card."
        )
    size = start.size if size is None else size
    if size is not None and encoder.transform.size != ((size, size) if isinstance(size, int) else tuple(size)):
        log.info("%s takes images of %s x %s; here they are %s.", start.card, *encoder.transform.size, size)
        encoder.resize(size)
    return encoder


def start_name(start: Start | None, pretrained: bool) -> str:
    """What the starting encoder is called where it is compared with the trained one."""
    if start is not None:
        return start.card
    return "pretrained" if pretrained else UNTRAINED
