"""The command line of recipes that train identity encoders: what they are compared with, and what is kept of them."""

import re
from collections.abc import Mapping
from copy import deepcopy
from datetime import date
from pathlib import Path

import numpy as np
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from rich.table import Table

import zoo
from experts.expert import Expert
from recipes.cli import CONFIGS, RecipeCLI, read_checkpoint
from recipes.tables import result_tables
from zoo.contracts import IdentityEncoder
from zoo.data.module import InstanceData
from zoo.evaluation.embeddings import EmbeddingWriter
from zoo.evaluation.evaluation import Evaluation
from zoo.evaluation.retrieval_pictures import RetrievalPictures


class ExpertCLI(RecipeCLI):
    """Trains an encoder, tests it beside others on identities that none of them has seen, and saves it with its card.

    Its `results` are of the trained encoder, of what it started from, of the cards in `--compare_with` and of random
    weights.
    """

    model: Evaluation
    datamodule: InstanceData

    # ------------------------------------------------------------------ parsing

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.set_defaults(monitor="val/mAP")
        parser.add_argument(
            "--compare_with",
            type=list[str],
            default=[],
            help="Cards of encoders to test beside the trained one after fit.",
        )
        parser.add_lightning_class_args(RetrievalPictures, "pictures")
        parser.add_lightning_class_args(EmbeddingWriter, "embeddings")

    def before_instantiate_classes(self) -> None:
        """A card that the user names is taken at its own size."""
        self._leave_sizes_of_cards_alone()
        super().before_instantiate_classes()

    def _leave_sizes_of_cards_alone(self) -> None:
        """A recipe's size is that of the card that the recipe starts from, and of no other."""
        model = self.config[self.subcommand]["model"]
        own = CONFIGS / f"{self.recipe}.yaml"
        size = yaml.safe_load(own.read_text()).get("model", {}).get("size")
        start = yaml.safe_load((CONFIGS / "expert.yaml").read_text())["model"]["init_from"]
        typed = any(word.startswith("--model.size") for word in self.given)
        unchanged = isinstance(model.size, tuple | list) and list(model.size) == size
        if unchanged and model.init_from not in (None, start) and not typed:
            model.size = None

    # ------------------------------------------------------------------ running

    @property
    def validates(self) -> bool:
        return self.datamodule.validates

    def before_fit(self) -> None:
        self.start = deepcopy(self.model.encoder)
        self.others = self._others()  # now, not after an hour of training, is the time to miss one
        super().before_fit()

    def after_training(self, best: Path) -> None:
        """Test the encoder before and after training, and others, on identities that none of them has seen."""
        folder = self.folder
        if self.validates:  # calibrates the threshold; the scores are in the curves already
            with self.without_loggers():
                self.trainer.validate(self.model, self.datamodule, ckpt_path=best, verbose=False)
        else:
            self.model.load_state_dict(read_checkpoint(best)["state_dict"])
        self._save_expert(folder / "expert", {})  # whatever the test may run into
        if self.datamodule.tests:
            results = {"trained": dict(self.trainer.test(self.model, self.datamodule, verbose=False)[0])}
            self._save_expert(folder / "expert", results["trained"])
            with self.without_loggers():
                for name, encoder in self.others.items():
                    other = Evaluation(encoder, protocol=self.model.protocol)
                    results[name] = dict(self.trainer.test(other, self.datamodule, verbose=False)[0])
            self.report({name: results[name] for name in reversed(list(results))})
        else:
            self.say("Nothing was tested: no identities with something to find are held out for it.")
        self.say_where(
            {"best checkpoint": best, "expert": folder / "expert", "pictures": folder / "pictures"},
            f"python -m recipes.{self.recipe} predict --model.init_from {folder / 'expert'} --data.root PHOTOS",
        )

    def tables(self, results: Mapping[str, Mapping[str, float]]) -> list[Table]:
        return result_tables(results)

    def _others(self) -> dict[str, IdentityEncoder]:
        """What the trained encoder is compared with: where it started, the cards asked for, and random weights."""
        given = self._get(self.config, "model")
        start = given["init_from"] or ("pretrained" if given["pretrained"] else "untrained")
        others = {start: self.start}
        others |= {name: zoo.load(name) for name in self._get(self.config, "compare_with") if name not in others}
        if "untrained" not in others:
            with self.model.seeded():
                others["untrained"] = type(self.start)(**self.start.init_args())
        return others

    # ------------------------------------------------------------------ saving

    def _save_expert(self, folder: Path, scores: Mapping[str, float]) -> None:
        """The encoder with its card, as `zoo.load` takes it; with its head where the data asks to name by it."""
        if not self.trainer.is_global_zero:
            return
        index = self.datamodule.index
        cameras = ", images of its own camera and identity left out" if (index.cameras >= 0).any() else ""
        zoo.save(
            self.model.encoder,
            folder,
            name=re.sub(r"[^A-Za-z0-9._+-]+", "_", self._get(self.config, "name")).lstrip("._+-") or "expert",
            overwrite=True,
            category=self._get(self.config, "model").get("category") or "",
            head=self.model.head_tensors() if isinstance(self.model, Expert) and len(index.rows("closed")) else None,
            training_data=f"{self._data_names()}: {index.describe()}",
            scores=[]
            if not scores
            else [
                zoo.Score(
                    dataset=f"{self._data_names()}, test",
                    protocol=f"each query against the gallery by cosine similarity, itself left out by index{cameras}",
                    date=date.today().isoformat(),
                    values={
                        name.removeprefix("test/"): round(scores[name], 4)
                        for name in dict.fromkeys(["test/rank1", "test/mAP", *scores])
                        if not re.search(r"queries|pairs|=.*/(?!rank1$|mAP$)", name)
                    },
                )
            ],
            recipe=self._command("fit"),
        )

    def _data_names(self) -> str:
        """Names of the folders or worlds of the run, with the collections that they come from."""
        index = self.datamodule.index
        sources = np.unique(index.attributes["source"]) if "source" in index.attributes else [index.root.resolve().name]
        origins = f" (of {', '.join(index.origins)})" if index.origins else ""
        return ", ".join(sources) + origins
