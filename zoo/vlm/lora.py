"""LoRA: low-rank updates of a frozen model's linear layers (Hu et al., "LoRA: Low-Rank Adaptation of Large Language
Models", ICLR 2022), by peft."""

from dataclasses import dataclass

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from zoo.vlm.families import Family

#: part of the name of every parameter that LoRA adds
LORA = "*lora_*"


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates of linear layers.

    Args:
        rank: of an update.
        alpha: an update is multiplied by alpha / rank.
        dropout: of an update's input.
        targets: names of layers of the language model; or a regular expression of the paths of any layers in the model;
            null for all linear layers of the language model.
        dora: train magnitudes apart from directions (Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] | str | None = None
    dora: bool = False

    def inject(self, model: nn.Module, family: Family) -> None:
        """Put updates that are zero at first into a model, in place: paths of modules stay as they are.

        Args:
            model: a model of transformers.
            family: of the model; it knows the layers of the language model.

        Raises:
            ValueError: no layer fits, or a rank that is not positive.
        """
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft divides by the rank: any number will do
            lora_dropout=self.dropout,
            target_modules=self.targets if isinstance(self.targets, str) else family.lora_pattern(self.targets),
            use_dora=self.dora,
        )
        inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():
            if "lora_" in name:  # trained in float32, whatever the type of the frozen weights
                parameter.data = parameter.data.float()
