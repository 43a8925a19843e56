"""Frozen towers whose features are computed once and kept on disk: the vision tower's and the experts'."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from zoo.cards.registry import class_path_of
from zoo.categories import Box
from zoo.conversations.manifest import Conversation
from zoo.data.images import UnreadableImage, read_image
from zoo.data.samplers import Key, ShardSampler
from zoo.distributed import from_all_ranks, rank, world_size
from zoo.vlm.batch import Example, VLMBatch, crop_key
from zoo.vlm.cache.features import FeatureCache, image_key, model_key, settings_of
from zoo.vlm.examples import Matches
from zoo.vlm.fused import FusedVLM, Seen
from zoo.vlm.processor import VLMProcessor

_AT_ONCE = 64  # images through the towers


class KeptImage(NamedTuple):
    """An image to be kept: its file, its expert category, and x, y, w, h in pixels of what the expert sees of it."""

    path: Path
    category: str
    box: Box | None


class CachedTowers:
    """What a `FusedVLM` sees, from disk: memory-mapped, so that memory does not grow with it.

    A cache belongs to one tower, its weights and the resolution that it is given; see `FeatureCache`.

    Args:
        folder: where caches of all models lie.
        fused: whose towers they are.
        batcher: of the model.

    Raises:
        ValueError: a family whose tower gives more than tokens.
    """

    def __init__(self, folder: Path, fused: FusedVLM, batcher: VLMProcessor) -> None:
        if fused.family.deepstack:
            raise ValueError(
                f"{fused.family.name} feeds DeepStack features to its language model, which no cache keeps. "
                "Set model.cache to null."
            )
        vlm: Any = fused.vlm
        self.fused, self.batcher = fused, batcher
        # Which layer of the tower counts, and how, stands in the whole model's configuration.
        resolution = [batcher.processor.image_processor.to_dict(), batcher.options]
        resolution.append(settings_of(vlm.config, without=("text_config",)))
        self.tower = FeatureCache(
            folder,
            tower_key(vlm.get_submodule(fused.family.tower), resolution),
            fused.family.widths(vlm.config)[0],
            vlm.dtype,
        )
        kind = "tokens" if fused.patch_tokens else "vector"
        experts: Any = fused.experts
        self.experts = {
            category: FeatureCache(
                folder,
                tower_key(expert, [asdict(batcher.crops[category]), *_detected(batcher), kind]),
                expert.embed_dim,
                torch.float32,
            )
            for category, expert in experts.items()
        }

    def see(self, batch: VLMBatch) -> Seen:
        """As `FusedVLM.see`, without running anything.

        Raises:
            ValueError: an image that has not been kept.
        """
        device = batch.input_ids.device
        tokens, counts = self._found(self.tower, batch.keys, batch)
        identities = {}
        for category, cache in self.experts.items():
            if category in batch.experts:
                crops = batch.experts[category].keys
                vectors, each = self._found(cache, crops, batch)
                shape = (len(crops), int(each[0]) if len(each) else 1, cache.width)
                identities[category] = vectors.view(shape).to(device)
        return Seen(tokens.to(device), counts.to(device), identities)

    @staticmethod
    def _found(cache: FeatureCache, keys: Sequence[str], batch: VLMBatch) -> tuple[Tensor, Tensor]:
        found = cache.get(keys)
        if found is None:
            names = "\n  ".join(dict.fromkeys(path for example in batch.examples for path in _paths_of(example)))
            raise ValueError(
                f"{len(cache.missing(keys))} images of a batch are not in the feature cache {cache.folder}: their "
                f"files were changed since it was filled. Run again. They are among:\n  {names}"
            )
        return found

    def fill(self, images: Sequence[KeptImage], workers: int) -> list[Path]:
        """Run the towers on those images that are not kept yet, a part of them on each process.

        It can be stopped at any time; the next call goes on.

        Args:
            images: what is to be kept, the same on every process.
            workers: processes that decode.

        Returns:
            those that could not be kept, since they cannot be read or taken.
        """
        # Agreed on before anyone starts: what another process has kept by now must not change whose an image is.
        own = [number for number in range(rank(), len(images), world_size()) if self._lacks(images[number])]
        lacking = sorted(sum(from_all_ranks(own), []))
        wanted = [images[number] for number in lacking[rank() :: world_size()]]
        loader = DataLoader(
            _Images(wanted),
            batch_size=_AT_ONCE,
            sampler=ShardSampler(np.arange(len(wanted))),
            collate_fn=partial(_collate, self.batcher),
            num_workers=workers if len(wanted) > _AT_ONCE else 0,
        )
        bar = track(loader, "Keeping features", len(loader), disable=rank() != 0 or not len(loader))
        for batch in bar:
            if batch is not None:
                self._keep(batch)
        if world_size() > 1:
            torch.distributed.barrier()
        for cache in (self.tower, *self.experts.values()):
            cache.refresh()
        left = [image.path for image in wanted if self._lacks(image)]
        return sum(from_all_ranks(left), [])

    def _lacks(self, image: KeptImage) -> bool:
        try:
            key = image_key(image.path, ())
        except OSError:
            return True
        expert = self.experts.get(image.category)
        return key not in self.tower or expert is not None and crop_key(key, image.box) not in expert

    def _keep(self, batch: VLMBatch) -> None:
        seen = self.fused.see(batch.to(self.fused.device))
        self.tower.put(batch.keys, seen.tokens.to(self.tower.dtype), seen.patches)
        for category, identity in seen.identities.items():
            if len(identity):
                counts = torch.full((len(identity),), identity.shape[1])
                self.experts[category].put(batch.experts[category].keys, identity.flatten(0, 1), counts)


class _Images(Dataset[Example | None]):
    """Images one by one, None for those that cannot be read."""

    def __init__(self, images: Sequence[KeptImage]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Example | None:
        path, category, box = self.images[key.row]
        try:
            image = read_image(path)
        except UnreadableImage:
            return None  # named when a conversation asks for it
        message = {"role": "user", "content": [{"type": "image", "image": image}]}
        return Example([message], "", path, (image_key(path, ()),), (category,), (box,), (str(path),))


def _collate(batcher: VLMProcessor, items: Sequence[Example | None]) -> VLMBatch | None:
    examples = [item for item in items if item is not None and batcher.unfit(item) is None]
    return batcher(examples, for_generation=True) if examples else None


def _detected(batcher: VLMProcessor) -> list[Any]:
    """What decides where an expert looks in an image without a box."""
    detector = batcher.detector
    if detector is None:
        return []
    named: Any = detector if hasattr(detector, "__qualname__") else type(detector)
    plain = {
        name: value for name, value in getattr(detector, "__dict__", {}).items() if isinstance(value, str | int | float)
    }
    weights = model_key(detector) if isinstance(detector, nn.Module) else None
    return [class_path_of(named), plain, weights, batcher.least_score]


def _paths_of(example: Any) -> list[str]:
    """Files of the images of what a batch was made from."""
    if isinstance(example, Conversation):
        return [image.path for image in (*example.gallery, example.query)]
    return list(example.paths) if isinstance(example, Matches) else [str(example)]


def tower_key(tower: Any, seen: Any) -> str:
    """Hash of a tower and of what decides what it sees of an image, and how large."""
    said = json.dumps([model_key(tower), seen], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:32]
