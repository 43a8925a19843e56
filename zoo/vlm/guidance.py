"""Guided attention: shows a small language model the three steps by which a query is matched with a gallery.

Left alone, a model of this size finds them after thousands of steps, if at all: each is of use only once the others are
there. Supervised attention is that of Liu et al., "Neural Machine Translation with Supervised Attention" (COLING 2016);
what is supervised here is the first head of the first three layers:

1. the tokens of a gallery image listen to the number in their label;
2. the tokens of the query listen to those of the gallery image that shows the same instance;
3. the answer listens to the tokens of the query.
"""

from typing import Any

import torch
from torch import Tensor

from zoo.data.conversations import Conversation
from zoo.vlm.batch import IGNORED, VLMBatch

STEPS = 3


def number_tokens(tokenizer: Any) -> Tensor:
    """Ids of the tokens that contain a digit."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return torch.tensor([token for token, text in enumerate(texts) if any(map(str.isdigit, text))])


def guided_steps(batch: VLMBatch, placeholder: int, numbers: Tensor) -> Tensor:
    """Which token should listen to which.

    Args:
        batch: conversations, padded on the right; other examples are left alone.
        placeholder: id of the token that stands for a token of an image.
        numbers: ids of the tokens that contain a digit.

    Returns:
        (3, B, L, L) bool, for each step and conversation: row listens to column.
    """
    ids = batch.input_ids
    wanted = torch.zeros(STEPS, *ids.shape, ids.shape[1], dtype=torch.bool, device=ids.device)
    counts, first = batch.image_tokens.tolist(), 0
    is_number = torch.isin(ids, numbers.to(ids.device))
    for row, example in enumerate(batch.examples):
        places = (ids[row] == placeholder).nonzero()[:, 0]
        several = 0
        while sum(counts[first : first + several]) < len(places):
            several += 1
        images = places.split(counts[first : first + several])
        first += several
        if not isinstance(example, Conversation) or not example.answer:
            continue
        *gallery, query = images
        end = 0
        for image in gallery:
            start = int(image[0])
            labels = is_number[row, end:start].nonzero()[:, 0] + end
            wanted[0, row, image[:, None], labels] = True
            end = int(image[-1]) + 1
        wanted[1, row, query[:, None], gallery[example.answer - 1]] = True
        before_answer = (batch.labels[row, 1:] != IGNORED).nonzero()
        wanted[2, row, before_answer, query] = True
    return wanted


def guidance_loss(attentions: tuple[Tensor, ...], wanted: Tensor) -> Tensor:
    """Mean negative log-share of its attention that a token gives to what it should listen to.

    Args:
        attentions: (B, heads, L, L) of the first three layers.
        wanted: of `guided_steps`.
    """
    rows = wanted.any(-1)
    losses = [
        -((layer[:, 0].float() * step).sum(-1)[own] + 1e-6).log().mean()
        for layer, step, own in zip(attentions, wanted, rows, strict=False)
        if own.any()
    ]
    return torch.stack(losses).sum() if losses else attentions[0].new_zeros(())
