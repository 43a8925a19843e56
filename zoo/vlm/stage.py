"""VLMStage: what every run with a vision-language model shares, whatever it learns."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from inspect import signature
from pathlib import Path
from typing import Any, Literal, Protocol, Self, cast

from torch import Tensor
from transformers import PreTrainedModel

import zoo
from zoo.cards import Card, load_tensors, resolve
from zoo.cards.registry import class_path_of
from zoo.cards.shelf import WEIGHTS
from zoo.categories import CATEGORIES, find_category
from zoo.contracts import FusionAdapter, IdentityEncoder
from zoo.home import home
from zoo.module import Optim, ZooModule
from zoo.scores import Scores
from zoo.vlm.batch import VLMBatch
from zoo.vlm.cache.features import model_key
from zoo.vlm.cache.towers import CachedTowers, KeptImage, tower_key
from zoo.vlm.fused import FusedVLM, TowerFeatures
from zoo.vlm.loading import load_vlm
from zoo.vlm.lora import LORA, LoRA
from zoo.vlm.processor import Detector, VLMProcessor

log = logging.getLogger(__name__)

#: category -> card of its expert; "default" for those that `zoo.categories` names
Experts = dict[str, str] | Literal["default"]

_FROZEN_HASHES = "frozen_hashes"
_FUSED_AT = "fused_at"
#: where and from what adapters work: what is trained for one place is worth nothing at another
_PLACE = ("before_projector", "patch_tokens")
_FUSION_WIDTHS = ("token_dim", "identity_dim")
#: arguments that a stage takes over from the one that it goes on from, where they are left at their defaults
_INHERITED = (
    *("vlm", "experts", "fusion", "before_projector", "patch_tokens", "dtype", "attention"),
    *("min_tokens", "max_tokens", "lora"),
)


class ImageSource(Protocol):
    """What a stage asks of its data: which images their features are to be kept of."""

    workers: int

    def images(self, *splits: str) -> Sequence[KeptImage]:
        """Every image of some splits."""

    def describe(self) -> str:
        """One line: what the data are."""


class VLMStage(ZooModule):
    """A vision-language model with experts, of which some parts train.

    It loads the model and the experts, injects the experts' identity vectors, freezes what does not train, keeps the
    frozen towers' features, and saves what was trained with the hashes of what was not. What is learned, and how it is
    scored, stands in the classes that derive from it: `AnswerStage` learns answers of conversations.

    The language model, the vision tower and the experts are frozen; the projector and an adapter for each expert train.
    `lora` adds updates to the language model, `unfreeze` lets further parts train.

    Args:
        vlm: name on the shelf, folder or hub id of the vision-language model.
        experts: category -> card of its expert; "default" for those of `zoo.categories`; null or {} for none.
        fusion: makes an adapter from (width of a token, width of an expert's vector); null for none.
        before_projector: where identities are added: before the projector, or after it.
        patch_tokens: give adapters the experts' patch tokens instead of one vector.
        dtype: type of the frozen model's weights.
        attention: how the model attends: sdpa, eager or flash_attention_2.
        gradient_checkpointing: compute the language model's activations again in the backward pass, to save memory.
        min_tokens: fewest tokens of an image.
        max_tokens: most tokens of an image.
        gate_lr: learning rate of the adapters' gates, which start at 0; not decayed.
        cache: keep the features of frozen towers on disk, so that the towers run once for each image: true for
            `features` in the zoo's `home`, or a folder; null runs the towers in every step.
        detector: class of what finds instances in images without a box: an RGB image goes in, `Detection`s come out;
            null shows experts the whole image.
        lora: low-rank updates of the language model; null for none.
        init_from: name or folder of what another stage has trained, to go on from. Of the arguments above, those that
            are left at their defaults are then the start's: model, experts, fusion, tokens, LoRA; `experts` {} is none.
        optim: optimiser and schedule.
        freeze: what does not train either, by name; `*` matches anything.
        unfreeze: what trains although it is frozen, such as `fused.vlm.model.language_model.layers.35`.
    """

    component_folder = "stage"
    fused: FusedVLM
    batcher: VLMProcessor

    def __init__(
        self,
        vlm: str | None = None,
        experts: Experts | None = None,
        fusion: Callable[[int, int], FusionAdapter] | None = None,
        before_projector: bool = True,
        patch_tokens: bool = False,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa",
        gradient_checkpointing: bool = False,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        gate_lr: float = 1e-2,
        cache: bool | str | None = None,
        detector: Detector | None = None,
        lora: LoRA | None = None,
        init_from: str | None = None,
        optim: Optim = Optim(lr=1e-4, warmup=0.03),  # noqa: B008  (frozen)
        freeze: list[str] | None = None,
        unfreeze: list[str] | None = None,
    ) -> None:
        options = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        if experts == "default":
            options["experts"] = default_experts()
        used = options if init_from is None else options | _taken_over(self._start(init_from), options)
        super().__init__(optim, freeze, [*(unfreeze or []), *[LORA] * (used["lora"] is not None)])
        self.save_plain_hyperparameters()
        self.vlm_name, self.expert_names, self.init_from = used["vlm"], dict(used["experts"] or {}), init_from
        # A plain function: copies of the module, as weight averaging makes them, share it; the command line's own
        # factories cannot be copied.
        make = used["fusion"] if self.expert_names else None
        self.make_adapter = make and (lambda width, identity: make(width, identity))
        self._options = options | {"fusion": fusion and (lambda width, identity: fusion(width, identity))}
        self.before_projector, self.patch_tokens = used["before_projector"], used["patch_tokens"]
        self.dtype_name, self.attention = used["dtype"], used["attention"]
        self.gradient_checkpointing = gradient_checkpointing
        self.token_budget = (used["min_tokens"], used["max_tokens"])
        self.gate_lr, self.detector, self.lora = gate_lr, detector, used["lora"]
        self._inherited: set[str] = set()  # names of tensors of the start that do not train here
        self._trained_on = ""
        self.cache = (str(home() / "features") if cache is True else cache) or None
        self.towers: CachedTowers | None = None
        self.unkept: set[Path] = set()  # images that there are no features of, where they are kept
        self._source: ImageSource | None = None

    def variant(self, **changes: Any) -> Self:
        """A new stage with these options changed, nothing of it trained.

        Args:
            **changes: arguments of the class.
        """
        return type(self)(**(self._options | changes))

    # ------------------------------------------------------------------ parts

    def connect(self, data: ImageSource) -> None:
        """Take what this root needs of its data, see `zoo.module.Connect`."""
        self._source = data

    def configure_model(self) -> None:
        """Load the model and the experts, make the adapters, and freeze what does not train."""
        if hasattr(self, "fused"):
            return
        vlm, processor = self.load_base()
        if self.gradient_checkpointing:
            vlm.gradient_checkpointing_enable({"use_reentrant": False})
        experts = {category: self._load_expert(category, card) for category, card in self.expert_names.items()}
        self._hashes = {} if self.vlm_name is None else {"vlm": model_key(vlm)}
        for category, expert in experts.items():
            self._hashes[category] = tower_key(expert, asdict(find_category(category).crop))
        with self.seeded():
            self.fused = FusedVLM(vlm, experts, self.make_adapter, self.before_projector, self.patch_tokens)
            if self.lora is not None:
                self.lora.inject(self.fused.vlm, self.fused.family)
        self.batcher = VLMProcessor(
            processor,
            self.fused.family,
            vlm.config,
            *self.token_budget,
            experts={category: expert.transform for category, expert in experts.items()},
            detector=self.detector,
        )
        self.apply_freezing()
        if self.init_from is not None:
            self._go_on_from(self.init_from)

    def load_base(self) -> tuple[PreTrainedModel, Any]:
        """The model of transformers, and its processor.

        Raises:
            ValueError: there is no such model.
        """
        if self.vlm_name is None:
            raise ValueError("model.vlm is null. Name a model on the shelf, a folder or a hub id; or give init_from.")
        return load_vlm(self.vlm_name, self.dtype_name, self.attention)

    @staticmethod
    def _load_expert(category: str, card: str) -> IdentityEncoder:
        find_category(category)
        expert = zoo.load(card)
        if not isinstance(expert, IdentityEncoder):
            raise ValueError(
                f"experts.{category}: {card} is a {type(expert).__name__}, no identity encoder. Name an expert's card."
            )
        return expert

    def frozen_parts(self) -> tuple[str, ...]:
        return ("fused.vlm", "fused.experts")

    def train(self, mode: bool = True) -> Self:
        """As in torch, but what is frozen stays in eval mode, apart from gradient checkpointing."""
        super().train(mode)
        if hasattr(self, "fused"):
            self.fused.set_gradient_checkpointing(mode)
        return self

    def lr_multipliers(self) -> dict[str, float]:
        return {"fused.adapters.*.gate": self.gate_lr / self.optim.lr}

    def __getstate__(self) -> dict[str, Any]:
        """A copy, as weight averaging makes one, is not connected: it would copy the data and its trainer, too."""
        return super().__getstate__() | {"_source": None}

    # ------------------------------------------------------------------ features

    def on_fit_start(self) -> None:
        self._trained_on = "" if self._source is None else self._source.describe()
        self.keep_features("train", "val")

    def keep_features(self, *splits: str) -> None:
        """Run the towers once on the images of some splits, where their features are kept. The data ask for it before
        they make loaders to evaluate with: workers read ahead before any other hook."""
        if self.cache is None or self._source is None:
            return
        if self.towers is None:
            self.towers = CachedTowers(Path(self.cache).expanduser(), self.fused, self.batcher)
        self.unkept.update(self.towers.fill(self._source.images(*splits), self._source.workers))

    @property
    def decodes(self) -> bool:
        """Whether images have to be read: not where their features are kept."""
        return self.cache is None

    def run_towers(self, batch: VLMBatch) -> TowerFeatures:
        """What the vision tower and the experts give for the images of a batch."""
        return self.fused.run_towers(batch) if self.towers is None else self.towers.run_towers(batch)

    # ------------------------------------------------------------------ what is kept of a run

    def component_state(self) -> dict[str, Tensor]:
        """Only what was trained, here or in the stages before: parameters, and the buffers of what is not frozen."""
        # Tied tensors have several names in a state dict: all of them are kept, or none.
        parameters = dict(self.named_parameters(remove_duplicate=False))
        kept = {name for name, parameter in parameters.items() if parameter.requires_grad} | self._inherited
        frozen = tuple(prefix for prefix, _ in self._frozen_modules(self, ""))
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name in kept or name not in parameters and not name.startswith(frozen)
        }

    def on_filled(self, names: Iterable[str]) -> None:
        """What a card brings beyond what trains is kept when it is saved again."""
        self._inherited = set(names)

    def frozen_hashes(self) -> dict[str, str]:
        return dict(self._hashes)

    def init_args(self) -> dict[str, Any]:
        return {
            "vlm": self.vlm_name and _absolute(self.vlm_name),
            "experts": {category: _absolute(card) for category, card in self.expert_names.items()},
            "fusion": self._fusion_entry(),
            "before_projector": self.before_projector,
            "patch_tokens": self.patch_tokens,
            "dtype": self.dtype_name,
            "attention": self.attention,
            "min_tokens": self.token_budget[0],
            "max_tokens": self.token_budget[1],
            "lora": None if self.lora is None else asdict(self.lora),
            "freeze": list(self.freeze_patterns),
            "unfreeze": [pattern for pattern in self.unfreeze_patterns if pattern != LORA],
        }

    def _fusion_entry(self) -> dict[str, Any] | None:
        """Class and arguments of the adapters, without the widths."""
        for adapter in self.fused.adapters.values():
            plain = cast(FusionAdapter, adapter).init_args()
            init = {name: value for name, value in plain.items() if name not in _FUSION_WIDTHS}
            return {"class": class_path_of(type(adapter)), "init": init}
        return None

    @classmethod
    def from_init_args(cls, init_args: Mapping[str, Any]) -> Self:
        return cls(**_arguments(init_args))

    def save_component(self, folder: Path, *, name: str, recipe: str, scores: Scores | None = None) -> Card:
        """Write what was trained, with its card, as `zoo.load` and `init_from` take it; in a distributed run on one
        rank.

        Args:
            folder: where to; what is there is replaced.
            name: of the component.
            recipe: the command that made it.
            scores: of the test.

        Raises:
            CardError: it could not be written.
        """
        if self.detector is not None:
            log.warning("A card cannot hold the detector of %s: give it to the loaded stage's `batcher` again.", name)
        return zoo.save(
            self,
            folder,
            name=name,
            overwrite=True,
            training_data=self._trained_on,
            scores=card_scores(self._trained_on, scores or {}),
            recipe=recipe,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Only what was trained; of what was not, the hash."""
        kept = self.component_state().keys()
        checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name in kept}
        checkpoint[_FROZEN_HASHES] = self.frozen_hashes()
        checkpoint[_FUSED_AT] = {name: getattr(self, name) for name in _PLACE}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: trained with other frozen parts or elsewhere in the model, or it does not say with which, or
                tensors are missing, left over or of another shape.
        """
        if _FROZEN_HASHES not in checkpoint:
            raise ValueError(
                "The checkpoint does not name the model and experts that it was trained with. "
                "Give one that a run of a stage of vision-language models has saved."
            )
        self._check_frozen("The checkpoint", checkpoint[_FROZEN_HASHES])
        _check_place("The checkpoint", checkpoint.get(_FUSED_AT, {}), {name: getattr(self, name) for name in _PLACE})
        kept = self.component_state().keys()
        frozen = {name: tensor for name, tensor in self.state_dict().items() if name not in kept}
        checkpoint["state_dict"] = frozen | checkpoint["state_dict"]
        super().on_load_checkpoint(checkpoint)

    def _check_frozen(self, what: str, hashes: Mapping[str, str]) -> None:
        """
        Raises:
            ValueError: a frozen part is missing here, or is another one.
        """
        for part, hash in hashes.items():
            if part not in self._hashes:
                raise ValueError(
                    f"{what} was trained with an expert for {part}, and model.experts names "
                    f"{', '.join(self.expert_names) or 'none'}. Name that expert, too."
                )
            if self._hashes[part] != hash:
                name = self.vlm_name if part == "vlm" else self.expert_names[part]
                raise ValueError(
                    f"{what} was trained with another {part} than {name}: that had the hash {hash[:12]}, this "
                    f"has {self._hashes[part][:12]}. Name the one that it was trained with, and its model.dtype."
                )

    # ------------------------------------------------------------------ starting from another stage

    @staticmethod
    def _start(where: str) -> Card:
        """
        Raises:
            ValueError: no card of a stage.
        """
        card = zoo.card(where)
        if not issubclass(resolve(card.class_path), VLMStage):
            raise ValueError(
                f"init_from: {where} is a {card.class_path}, not what a stage of vision-language models has trained. "
                "Name the `component` folder of such a run, or a card of one."
            )
        return card

    def _go_on_from(self, where: str) -> None:
        """Load what another stage has trained; what this one has beyond it starts anew.

        Raises:
            ValueError: trained with other frozen parts or elsewhere in the model, or tensors that have no place here.
        """
        card = zoo.card(where)
        self._check_frozen(f"init_from {where}", card.frozen)
        if card.init["fusion"] != self._fusion_entry():
            raise ValueError(
                f"init_from: {where} was trained with fusion {card.init['fusion']}, here it is {self._fusion_entry()}. "
                "Set model.fusion to null, which takes that of the start."
            )
        tensors, own = load_tensors(where, WEIGHTS), self.state_dict()
        misfits = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
        if misfits:
            raise ValueError(
                f"init_from: {len(misfits)} of {len(tensors)} tensors of {where} have no place here, such as "
                f"{misfits[0]}. Leave model.experts, fusion and lora at null, which takes those of the start."
            )
        new = [name for name in self.component_state() if name not in tensors]
        if new and self.global_rank == 0:
            log.info("%s: %d tensors are not in it and start anew, such as %s", where, len(new), new[0])
        self.load_state_dict(tensors, strict=False)
        self._inherited = set(tensors)


def default_experts() -> dict[str, str]:
    """Category -> card of its expert, as `zoo.categories` names them."""
    return {name: category.expert for name, category in CATEGORIES.items()}


def _fusion_factory(entry: Mapping[str, Any] | None) -> Callable[[int, int], FusionAdapter] | None:
    """What makes the adapters that a card's entry describes."""
    if entry is None:
        return None
    adapter = cast(type[FusionAdapter], resolve(entry["class"]))
    return lambda width, identity: adapter(width, identity, **entry["init"])


def _arguments(init: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a stage that a card's `init` describes."""
    lora = init.get("lora")
    made = {"fusion": _fusion_factory(init.get("fusion")), "lora": None if lora is None else LoRA(**lora)}
    return dict(init) | made


def _taken_over(start: Card, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a stage's start, in place of those that are left at their defaults.

    Raises:
        ValueError: an argument that differs from the start's, and cannot.
    """
    defaults = {name: known.default for name, known in signature(VLMStage).parameters.items()}
    known = _arguments(start.init)
    taken = {name: known[name] for name in _INHERITED if options[name] == defaults[name]}
    _check_place(f"init_from: {start.name}", known, {name: options[name] for name in _PLACE if name not in taken})
    return taken


def _check_place(what: str, known: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: adapters were trained for another place in the model.
    """
    for name, value in here.items():
        if name in known and known[name] != value:
            raise ValueError(
                f"{what} was trained with {name} {known[name]}, here it is {value}. Set model.{name} to {known[name]}."
            )


def _absolute(where: str) -> str:
    """A local folder by its whole path, so that a card can be loaded from anywhere; a name or hub id as it is."""
    folder = Path(where).expanduser()
    return str(folder.resolve()) if folder.is_dir() and where not in zoo.list_models() else where


def card_scores(data: str, scores: Scores) -> list[zoo.Score]:
    """The scores over everything and of each group, as a card holds them; none of none."""
    values = {str(key): round(value, 4) for key, value in scores.items() if not key.level}
    if not values:
        return []
    protocol = "answers compared by log-likelihood; means over groups"
    return [zoo.Score(dataset=f"{data}, test", protocol=protocol, date=date.today().isoformat(), values=values)]
