"""Guided attention: trains a small language model to take the three steps by which a query is matched with a gallery.

Without it, a model of this size finds them after thousands of steps, if at all: each is of use only once the others are
there. Supervised attention is that of Liu et al., "Neural Machine Translation with Supervised Attention" (COLING 2016);
what is supervised here is the first head of the first three layers:

1. the tokens of a gallery image attend to the number in their label;
2. the tokens of a query attend to those of the gallery image that shows the same instance;
3. an answer attends to the tokens of its query.

The result of the first two steps is supervised, too: after the first layer the tokens of a gallery image have to name
its number, and after the second those of a query the right one. Supervised at the last layer only, they would be
learned in later layers, where the next step cannot use them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.distributed import mean_over_ranks
from zoo.vlm.batch import IGNORED, VLMBatch
from zoo.vlm.small.easy_gallery import EasyGallery

STEPS = 3


def number_tokens(tokenizer: Any) -> Tensor:
    """Ids of the tokens that contain a digit."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return torch.tensor([token for token, text in enumerate(texts) if any(map(str.isdigit, text))])


class Guide(NamedTuple):
    """What the tokens of a batch should attend to and name.

    Args:
        attends: (3, B, L, L) bool, for each step and conversation: row attends to column.
        names: (2, B, L) int64, id of the number that a token has to name after the first and after the second step,
            -100 for none.
    """

    attends: Tensor
    names: Tensor


def guide(batch: VLMBatch, placeholder: int, numbers: Tensor) -> Guide:
    """Which token should attend to which, and name what.

    Args:
        batch: conversations, padded on the right; other examples are left alone.
        placeholder: id of the token that stands for a token of an image.
        numbers: ids of the tokens that contain a digit.
    """
    ids = batch.input_ids
    wanted = torch.zeros(STEPS, *ids.shape, ids.shape[1], dtype=torch.bool, device=ids.device)
    names = torch.full((2, *ids.shape), IGNORED, device=ids.device)
    counts, first = batch.image_tokens.tolist(), 0
    is_number = torch.isin(ids, numbers.to(ids.device))
    for row, item in enumerate(batch.items):
        places = (ids[row] == placeholder).nonzero()[:, 0]
        several = 0
        while sum(counts[first : first + several]) < len(places):
            several += 1
        images = places.split(counts[first : first + several])
        first += several
        if not isinstance(item, EasyGallery):
            continue
        gallery, queries = images[: -len(item.answers)], images[-len(item.answers) :]
        end = 0
        for image in gallery:
            start = int(image[0])
            labels = is_number[row, end:start].nonzero()[:, 0] + end
            wanted[0, row, image[:, None], labels] = True
            names[0, row, image] = int(ids[row, labels[-1]])
            end = int(image[-1]) + 1
        before_answers = (batch.labels[row, 1:] != IGNORED).nonzero()[:, 0]
        for query, answer in zip(queries, item.answers, strict=True):
            right = gallery[answer - 1]
            wanted[1, row, query[:, None], right] = True
            names[1, row, query] = int(names[0, row, right[0]])
            later = before_answers[before_answers > query[-1]]
            wanted[2, row, later] = False  # an answer is about the last query before it
            wanted[2, row, later[:, None], query] = True
    return Guide(wanted, names)


def attention_loss(attentions: tuple[Tensor, ...], wanted: Tensor) -> Tensor:
    """Mean negative log-share of a token's attention that is where it should be, summed over the steps.

    Args:
        attentions: (B, heads, L, L) of the first three layers.
        wanted: (3, B, L, L) bool, see `Guide`.
    """
    losses = []
    for layer, step in zip(attentions, wanted, strict=False):
        share = (layer[:, 0].float() * step).sum(-1)[step.any(-1)]
        losses.append(mean_over_ranks(-(share + 1e-6).log()))
    return torch.stack(losses).sum()


def naming_loss(states: tuple[Tensor, ...], names: Tensor, head: nn.Module) -> Tensor:
    """Mean cross entropy of the numbers that tokens have to name, summed over the steps.

    Args:
        states: (B, L, H) before the first layer, and after each.
        names: (2, B, L) int64, see `Guide`.
        head: of the language model; it expects normalised states.
    """
    losses = []
    for state, step in zip(states[1:], names, strict=False):
        own = step != IGNORED
        logits = head(F.rms_norm(state[own], state.shape[-1:])).float()
        losses.append(mean_over_ranks(F.cross_entropy(logits, step[own], reduction="none")))
    return torch.stack(losses).sum()
