"""Frozen towers whose features are computed once and kept on disk: the vision tower's and the experts'."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from zoo.cards.registry import class_path_of
from zoo.contracts import IdentityEncoder
from zoo.data.images import UnreadableImage, read_image
from zoo.data.samplers import Key, ShardSampler
from zoo.distributed import from_all_ranks, rank, world_size
from zoo.vlm.batch import Example, ExpertCrops, Instance, VLMBatch
from zoo.vlm.cache.features import FeatureCache, image_key, model_key, settings_of
from zoo.vlm.fused import ExpertFeatures, FusedVLM, TowerFeatures
from zoo.vlm.processor import VLMProcessor

_AT_ONCE = 64  # images through the towers


class KeptImage(NamedTuple):
    """An image whose features are to be kept: its file, and the instances in it."""

    path: Path
    instances: tuple[Instance, ...] = ()


class CachedTowers:
    """The features that the towers of a `FusedVLM` give, from disk: memory-mapped, so that memory does not grow with
    them.

    A cache belongs to one tower, its weights and the resolution that it is given; see `FeatureCache`.

    Args:
        folder: where caches of all models lie.
        fused: whose towers they are.
        batcher: of the model.

    Raises:
        ValueError: a family whose tower gives more than tokens, or a tower that trains.
    """

    def __init__(self, folder: Path, fused: FusedVLM, batcher: VLMProcessor) -> None:
        if fused.family.deepstack:
            raise ValueError(
                f"{fused.family.name} feeds DeepStack features to its language model, which no cache keeps. "
                "Set model.cache to null."
            )
        vlm = cast(PreTrainedModel, fused.vlm)
        tower = vlm.get_submodule(fused.family.tower)
        for name, part in (("vision tower", tower), ("experts", fused.experts)):
            if any(parameter.requires_grad for parameter in part.parameters()):
                raise ValueError(
                    f"The {name} would train while their features come from a cache. Freeze them, or set model.cache "
                    "to null."
                )
        self.fused, self.batcher = fused, batcher
        # Which layer of the tower counts, and how, stands in the whole model's configuration.
        resolution = [batcher.processor.image_processor.to_dict(), batcher.options]
        resolution.append(settings_of(vlm.config, without=("text_config",)))
        self.tower = FeatureCache(folder, tower_key(tower, resolution), fused.family.widths(vlm.config)[0], vlm.dtype)
        kind = "tokens" if fused.patch_tokens else "vector"
        self.experts = {
            category: FeatureCache(
                folder,
                tower_key(expert, [asdict(batcher.crops[category]), *_detector_key(batcher), kind]),
                cast(IdentityEncoder, expert).embed_dim,
                torch.float32,
            )
            for category, expert in fused.experts.items()
        }

    def run_towers(self, batch: VLMBatch) -> TowerFeatures:
        """As `FusedVLM.run_towers`, without running anything.

        Raises:
            ValueError: an image that has not been kept.
        """
        device = batch.input_ids.device
        tokens, counts = self._kept(self.tower, batch.keys, batch)
        experts = {
            category: self._expert_features(cache, batch.experts[category], batch)
            for category, cache in self.experts.items()
            if category in batch.experts
        }
        return TowerFeatures(tokens.to(device), counts.to(device), experts)

    def _expert_features(self, cache: FeatureCache, crops: ExpertCrops, batch: VLMBatch) -> ExpertFeatures:
        """Those of the crops that have any: an instance that a detector did not find has none."""
        vectors, each = self._kept(cache, crops.keys, batch)
        present = each > 0
        each = each[present]
        shape = (len(each), int(each[0]) if len(each) else 1, cache.width)
        image = crops.image[present.to(crops.image.device)]
        return ExpertFeatures(vectors.view(shape).to(batch.input_ids.device), image)

    @staticmethod
    def _kept(cache: FeatureCache, keys: Sequence[str], batch: VLMBatch) -> tuple[Tensor, Tensor]:
        found = cache.get(keys)
        if found is None:
            names = "\n  ".join(dict.fromkeys(batch.image_names))
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
        crops = self.batcher.crop_keys(key, image.instances)
        return key not in self.tower or any(crop not in self.experts[category] for category, crop in crops)

    @torch.no_grad()
    def _keep(self, batch: VLMBatch) -> None:
        features = self.fused.run_towers(batch.to(self.fused.device))
        self.tower.put(batch.keys, features.tokens.to(self.tower.dtype), features.patches)
        for category, own in features.experts.items():
            crops = batch.experts[category]
            counts = [own.vectors.shape[1]] * len(crops.keys) + [0] * len(crops.absent)
            if counts:
                self.experts[category].put(
                    (*crops.keys, *crops.absent), own.vectors.flatten(0, 1), torch.tensor(counts)
                )


class _Images(Dataset[Example | None]):
    """Images one by one, None for those that cannot be read."""

    def __init__(self, images: Sequence[KeptImage]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Example | None:
        path, instances = self.images[key.row]
        try:
            image = read_image(path)
        except UnreadableImage:
            return None  # named when a conversation asks for it
        message = {"role": "user", "content": [{"type": "image", "image": image}]}
        return Example([message], "", path, (image_key(path, ()),), (instances,), (str(path),))


def _collate(batcher: VLMProcessor, items: Sequence[Example | None]) -> VLMBatch | None:
    examples = [item for item in items if item is not None and batcher.unfit(item) is None]
    return batcher(examples, for_generation=True) if examples else None


def _detector_key(batcher: VLMProcessor) -> list[object]:
    """What decides where an expert's crop is in an image without a box."""
    detector = batcher.detector
    if detector is None:
        return []
    named = detector if isinstance(detector, type) or hasattr(detector, "__qualname__") else type(detector)
    plain = {
        name: value for name, value in getattr(detector, "__dict__", {}).items() if isinstance(value, str | int | float)
    }
    weights = model_key(detector) if isinstance(detector, nn.Module) else None
    return [class_path_of(cast(type, named)), plain, weights, batcher.least_score]


def tower_key(tower: nn.Module, settings: object) -> str:
    """Hash of a tower, and of the settings that decide which part of an image it takes, and how large."""
    text = json.dumps([model_key(tower), settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
