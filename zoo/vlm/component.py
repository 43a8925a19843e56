"""A vision-language model of transformers as a component of the zoo: a folder that both of them load."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from zoo.cards import Card, Score, save
from zoo.cards.cardfile import CARD
from zoo.cards.registry import class_path_of
from zoo.module import ZooModule


class VisionLanguageModel(ZooModule):
    """Names its tensors as transformers does, so that `zoo.load` and `from_pretrained` read the same file.

    Args:
        config: configuration of transformers, as a mapping.
        network: the model itself; None for one with random weights.
    """

    def __init__(self, config: dict[str, Any], network: PreTrainedModel | None = None) -> None:
        super().__init__()
        if network is None:
            network = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config))
        self.config = config
        self.model, self.lm_head = network.model, network.lm_head
        self.__dict__["network"] = network  # no submodule: its tensors would bear other names

    def init_args(self) -> dict[str, Any]:
        return {"config": self.config}

    def forward(self, **inputs: Any) -> Any:
        """What transformers' model gives for these inputs."""
        return self.__dict__["network"](**inputs)


def save_vlm(
    network: PreTrainedModel,
    processor: Any,
    folder: Path,
    *,
    name: str,
    overwrite: bool = False,
    description: str = "",
    training_data: str = "",
    licence: str = "",
    scores: Iterable[Score] = (),
    recipe: str = "",
) -> Card:
    """Write a model with its card, its configuration and its processor.

    Args:
        network: the model, its projector in its place.
        processor: of the model.
        folder: where to.
        name: of the component.
        overwrite: replace an earlier one.
        description, training_data, licence, scores, recipe: see `zoo.save`.
    """
    config = json.loads(network.config.to_json_string(use_diff=True))
    config.pop("transformers_version", None)
    if overwrite:
        _clear(folder)
    card = save(
        VisionLanguageModel(config, network),
        folder,
        name=name,
        overwrite=overwrite,
        description=description,
        training_data=training_data,
        licence=licence,
        scores=scores,
        recipe=recipe,
    )
    network.config.save_pretrained(folder)
    network.generation_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return card


def _clear(folder: Path) -> None:
    """Take away what an earlier `save_vlm` has laid beside its card: `save` replaces nothing but components."""
    if (folder / CARD).is_file() and Card.read(folder / CARD).class_path == class_path_of(VisionLanguageModel):
        for path in folder.iterdir():
            if path.suffix in (".json", ".jinja"):
                path.unlink()
