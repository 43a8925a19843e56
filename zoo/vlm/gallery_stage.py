"""GalleryStage: base of the roots that are scored by picking the query's instance out of a gallery."""

import math
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from zoo.home import home
from zoo.metrics import ChoiceAccuracy
from zoo.module import Optim, ZooModule
from zoo.vlm.batch import VLMBatch
from zoo.vlm.cache.towers import CachedTowers
from zoo.vlm.fused import FusedVLM, Seen
from zoo.vlm.processor import VLMProcessor
from zoo.vlm.prompts import option_ids, options, parse_choice

_NEVER_NONE = ("expert", "general")  # they always name an image
_SPARE_TOKENS = 4  # that a written answer may have beyond the longest option


class GalleryStage(ZooModule):
    """Validates and tests a model on galleries.

    `accuracy` compares the log-likelihoods of the options, `written` reads what the model writes (tests only),
    `expert` takes the gallery image that is most similar to the query for the expert alone (eq. 2), `general` the one
    that is for the encoder that the galleries were mined with, and `chance` is what guessing gives. Each is a mean over
    the categories, and also given for every category and level of difficulty. `expert` and `general` cannot say that
    none matches: they are of the conversations with a match only; `no_match` is the share of those without, where
    there are any. Of an expert's patch tokens there is no `expert`: they are not the vector of eq. 2.

    Args:
        optim: optimiser and schedule.
        freeze: what does not train, by name; `*` matches anything.
        writes: whether a test also lets the model write its answers.
        cache: keep the features of frozen towers on disk, so that each image is seen once only: true for
            `features` in the zoo's `home`, or a folder; null runs the towers in every step.
    """

    fused: FusedVLM
    batcher: VLMProcessor

    def __init__(
        self,
        optim: Optim | None = None,
        freeze: list[str] | None = None,
        writes: bool = True,
        cache: bool | str | None = None,
    ) -> None:
        super().__init__(optim, freeze)
        self.writes, self.cache = writes, (str(home() / "features") if cache is True else cache) or None
        self.towers: CachedTowers | None = None
        self._metrics: dict[str, ChoiceAccuracy] = {}

    # ------------------------------------------------------------------ features

    def on_fit_start(self) -> None:
        self.keep_features("train", "val")

    def keep_features(self, *splits: str) -> None:
        """Run the towers once on the images of some splits, where their features are kept. The data ask for it before
        they make loaders to evaluate with: workers read ahead before any other hook."""
        if self.cache is not None:
            if self.towers is None:
                self.towers = CachedTowers(Path(self.cache).expanduser(), self.fused, self.batcher)
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            data.unkept.update(self.towers.fill(data.images(*splits), data.workers))

    def see(self, batch: VLMBatch) -> Seen:
        """What the frozen towers make of the images of a batch."""
        return self.fused.see(batch) if self.towers is None else self.towers.see(batch)

    # ------------------------------------------------------------------ steps

    def validation_step(self, batch: VLMBatch, batch_idx: int) -> None:
        if batch.examples:  # else all of them were left out
            self._judge(batch, self.see(batch))

    def test_step(self, batch: VLMBatch, batch_idx: int) -> None:
        if not batch.examples:
            return
        seen = self.see(batch)
        self._judge(batch, seen)
        if self.writes:
            self._take("written", self.written(batch, seen), batch)

    def _judge(self, batch: VLMBatch, seen: Seen) -> None:
        self._take("accuracy", self.choices(batch, self.scores(batch, seen)), batch)
        nearest = [int(np.argmax(conversation.similarities)) + 1 for conversation in batch.examples]
        self._take("general", torch.tensor(nearest), batch)
        if "expert" in self._metrics:
            self._take("expert", self.by_expert(batch, seen), batch)

    # ------------------------------------------------------------------ answers

    def scores(self, batch: VLMBatch, seen: Seen) -> Tensor:
        """(B, O) log-likelihood of every option, in the order of `options`; -inf beyond a smaller gallery's."""
        return self.fused.option_scores(batch, seen, self._option_ids(batch))

    def choices(self, batch: VLMBatch, scores: Tensor) -> Tensor:
        """(B,) the likeliest option: the place in the gallery from 1, or 0 for none of them."""
        best = scores.argmax(dim=1).cpu() + 1
        sizes = torch.tensor([len(conversation.gallery) for conversation in batch.examples])
        return torch.where(best > sizes, 0, best)

    def written(self, batch: VLMBatch, seen: Seen) -> Tensor:
        """(B,) the option that the model writes, -1 where it writes none or several."""
        longest = self._option_ids(batch).shape[2]
        ids = self.fused.generate(batch, seen, longest + _SPARE_TOKENS)
        texts = self.batcher.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        found = [parse_choice(t, c.category, len(c.gallery)) for t, c in zip(texts, batch.examples, strict=True)]
        return torch.tensor([-1 if choice is None else choice for choice in found])

    def by_expert(self, batch: VLMBatch, seen: Seen) -> Tensor:
        """(B,) the gallery image most similar to the query, to the expert alone (eq. 2), by one vector an image."""
        vectors: dict[int, Tensor] = {}
        for category, identity in seen.identities.items():
            vectors |= dict(zip(batch.experts[category].image.tolist(), identity[:, 0].float(), strict=True))
        chosen, first = [], 0
        for conversation in batch.examples:
            query = first + len(conversation.gallery)
            gallery = torch.stack([vectors[image] for image in range(first, query)])
            chosen.append(int((gallery @ vectors[query]).argmax()) + 1)
            first = query + 1
        return torch.tensor(chosen)

    def _option_ids(self, batch: VLMBatch) -> Tensor:
        """(B, O, A) token ids of the options, -1 where there is none."""
        tokenizer, rows = self.batcher.processor.tokenizer, []
        no_match: bool = self.trainer.datamodule.no_match  # type: ignore[attr-defined]
        for conversation in batch.examples:
            texts = options(conversation.category, len(conversation.gallery), no_match)
            rows.append(pad_sequence([torch.tensor(ids) for ids in option_ids(tokenizer, texts)], True, -1))
        shape = [max(row.shape[axis] for row in rows) for axis in (0, 1)]
        padded = [F.pad(row, (0, shape[1] - row.shape[1], 0, shape[0] - row.shape[0]), value=-1) for row in rows]
        return torch.stack(padded).to(self.device)

    # ------------------------------------------------------------------ reports

    def on_validation_epoch_start(self) -> None:
        self._start("accuracy", "general")

    def on_test_epoch_start(self) -> None:
        self._start("accuracy", "general", *["written"] * self.writes)

    def _start(self, *names: str) -> None:
        """Metrics of every category and level, the same on every rank."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._groups = {pair: number for number, pair in enumerate(product(data.categories, data.levels))}
        if set(data.categories) <= set(self.fused.experts) and not self.fused.patch_tokens:
            names = (*names, "expert")
        groups = [f"{category}/{level}" for category, level in self._groups]
        self._metrics = {name: ChoiceAccuracy(groups).to(self.device) for name in names}

    def _take(self, name: str, chosen: Tensor, batch: VLMBatch) -> None:
        if name in self._metrics:
            answers = torch.tensor([conversation.answer for conversation in batch.examples])
            groups = torch.tensor([self._groups[c.category, c.level] for c in batch.examples])
            counts = answers > 0 if name in _NEVER_NONE else torch.ones_like(answers, dtype=torch.bool)
            self._metrics[name].update(chosen.cpu()[counts], answers[counts], groups[counts])

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _report(self, split: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        cells = {"chance": data.chance(split)}
        scores, examples = {}, {}
        for name, metric in self._metrics.items():
            found = {key: float(value) for key, value in metric.compute().items()}
            examples[name] = found["examples"]
            cells[name] = {pair: found[f"accuracy/{pair[0]}/{pair[1]}"] for pair in self._groups}
            if name == "written":
                scores[f"{split}/unparsed"] = found["unparsed"]
        scores[f"{split}/conversations"] = examples["accuracy"]
        if data.no_match and examples["accuracy"]:
            scores[f"{split}/no_match"] = 1 - examples["general"] / examples["accuracy"]
        for name, shares in cells.items():
            scores |= {f"{split}/{where}{name}": share for where, share in _summed_up(shares).items()}
        if self.trainer.sanity_checking:
            if self.logger is not None:
                self.logger.log_metrics(scores, step=0)
            return
        for key, value in scores.items():
            self.log(key, value, prog_bar=key.endswith("/accuracy") and key.count("/") == 1)


def _summed_up(cells: dict[tuple[str, str], float]) -> dict[str, float]:
    """Means of the shares of every (category, level): "" over the categories, "pet/", "tau=0.5/", "pet/tau=0.5/"."""
    known = {pair: share for pair, share in cells.items() if not math.isnan(share)}
    means = {}
    for place in (0, 1):
        for value in dict.fromkeys(pair[place] for pair in known):
            means[f"{value}/"] = fmean(share for pair, share in known.items() if pair[place] == value)
    categories = [means[f"{category}/"] for category in dict.fromkeys(pair[0] for pair in known)]
    each = {f"{category}/{level}/": share for (category, level), share in known.items()}
    return ({"": fmean(categories)} if categories else {}) | means | each
