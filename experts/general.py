"""GeneralEncoder: trains an encoder to name categories and attributes, never an identity."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from experts.start import Start, start_name, starting_encoder
from zoo.data.dataset import classes_of
from zoo.evaluation import Evaluation, Protocol


class GeneralEncoder(Evaluation):
    """Trains an encoder to name attributes: the stand-in for a general backbone such as DINOv2.

    An expert is compared with it: how well does general visual knowledge tell instances apart? Each of joined data sets
    has attributes of its own; an image counts for those that it has.

    Args:
        attributes: columns of the index to learn; null for all of them.
        backbone: name of a timm architecture, `arch.tag` or hub id; null for mobilenetv3_small_050.
        pretrained: start from published weights.
        size: input height and width in pixels, or one number for both; null takes that of the start, which is the
            backbone's own where training starts from scratch.
        pool: pooling that timm knows for this backbone; null takes its own.
        neck: bnneck, or null to classify and embed the pooled features as they are.
        options: what else the architecture takes, such as drop_path_rate.
        init_from: name or folder of a card to go on from, or one with the size to take it at; it brings its own
            architecture, so it excludes backbone, pretrained, pool and options.
        optim: optimiser and schedule.
        freeze: what does not train, by name; `*` matches anything.
        protocol: how the encoder is tested.
    """

    training_only = ("heads.",)

    def __init__(
        self,
        attributes: list[str] | None = None,
        backbone: str | None = None,
        pretrained: bool = False,
        size: int | tuple[int, int] | None = None,
        pool: str | None = None,
        neck: Literal["bnneck"] | None = "bnneck",
        options: dict[str, Any] | None = None,
        init_from: str | Start | None = None,
        optim: zoo.Optim = zoo.Optim(),  # noqa: B008  (frozen)
        freeze: list[str] | None = None,
        protocol: Protocol = Protocol(),  # noqa: B008  (frozen)
    ) -> None:
        start = Start.of(init_from)
        encoder = starting_encoder(start, backbone, pretrained, size, pool, neck, options)
        super().__init__(encoder, optim, freeze, protocol)
        self.save_plain_hyperparameters()
        self.attributes, self.start = attributes, start_name(start, pretrained)
        self.columns: list[int] = []
        self.heads: nn.ModuleList | None = None

    def configure_model(self) -> None:
        """Make one linear classifier for each attribute; evaluation does without.

        Raises:
            ValueError: an attribute that the data does not have.
        """
        if self.heads is not None or self.trainer.state.fn != "fit":
            return
        table = self.index.attributes
        names = self.attributes if self.attributes is not None else [name for name in table if name != "source"]
        unknown = [name for name in names if name not in table]
        if unknown or not names:
            raise ValueError(
                f"Attribute {unknown[0] if unknown else None!r} is not in the data, which has: "
                f"{', '.join(table) or 'none'}. Name its own in model.attributes."
            )
        self.columns = [list(table).index(name) for name in names]
        classes = [len(classes_of(table[name])[0]) for name in names]
        with self.seeded():
            self.heads = nn.ModuleList(nn.Linear(self.encoder.embed_dim, count) for count in classes)
        self.apply_freezing()

    def training_step(self, batch: zoo.IdentityBatch, batch_idx: int) -> Tensor:
        assert self.heads is not None
        embeddings = self.encoder(batch.images)
        losses, hits = [], []
        for head, column in zip(self.heads, self.columns, strict=True):
            classes = batch.attributes[:, column]
            known = classes >= 0
            logits = head(embeddings).float()
            # A sum, so that an attribute that no image of the batch has leaves a zero with a gradient.
            losses.append(F.cross_entropy(logits, classes, ignore_index=-1, reduction="sum") / known.sum().clamp(min=1))
            hits.append((logits.argmax(1) == classes)[known])
        loss = self.check_finite(torch.stack(losses).mean(), "loss", batch.indices)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.images))
        right = torch.cat(hits).float().mean()
        self.log("train/attribute_accuracy", right, prog_bar=True, batch_size=len(batch.images))
        return loss

    def lr_multipliers(self) -> dict[str, float]:
        return {"heads": self.optim.head_lr, **super().lr_multipliers()}
