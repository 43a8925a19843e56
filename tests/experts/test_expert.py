"""The trainer of experts: a loss and a head from outside of the project train in it; what it is compared with, what it
leaves."""

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from experts.expert import Expert
from experts.heads import IdentityHead
from experts.losses import MetricLoss
from recipes.expert_pet import main
from zoo.data.module import InstanceData
from zoo.evaluation import Evaluation
from zoo.scores import ScoreName


class Contrastive(MetricLoss):
    """Squared distance of equal identities, hinge of a margin on different ones (Hadsell et al., 2006)."""

    calls = 0

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        type(self).calls += 1
        distance = torch.pdist(F.normalize(features.float(), dim=1))
        first, second = torch.triu_indices(len(labels), len(labels), 1)
        same = labels[first] == labels[second]
        return torch.where(same, distance**2, F.relu(self.margin - distance) ** 2).mean()


class PrototypeHead(IdentityHead):
    """Cross-entropy over negative distances to a point for each identity."""

    def __init__(self, num_identities: int, embed_dim: int) -> None:
        super().__init__(num_identities)
        self.points = nn.Parameter(torch.randn(num_identities, embed_dim))

    def logits(self, embeddings: Tensor) -> Tensor:
        return -torch.cdist(embeddings.float(), self.points)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        self.check_labels(labels)
        return F.cross_entropy(self.logits(embeddings), labels)


def trainer(**more: object) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=1, **more,
    )  # fmt: skip


def data(photos: Path) -> InstanceData:
    return InstanceData(root=str(photos), workers=0, identities_per_batch=4, images_per_identity=2, steps_per_epoch=2)


def expert(**more: object) -> Expert:
    return Expert(backbone="test_resnet", size=32, optim=zoo.Optim(lr=1e-2), **more)  # type: ignore[arg-type]


def test_a_loss_and_a_head_from_elsewhere_train_two_steps(photos):
    Contrastive.calls = 0
    model, run = expert(head=PrototypeHead, metric_loss=Contrastive), trainer()
    run.fit(model, data(photos))
    assert isinstance(model.head, PrototypeHead) and run.global_step == Contrastive.calls == 2
    fresh = expert(head=PrototypeHead, metric_loss=Contrastive)
    with fresh.seeded():
        before = PrototypeHead(model.head.num_identities, model.embed_dim)
    assert not torch.equal(model.head.points, before.points), "the head has learned"


def test_the_command_line_takes_them_by_their_paths(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = __name__
    main([
        "fit", f"--data.root={photos}", "--data.workers=0", "--data.identities_per_batch=4",
        "--data.steps_per_epoch=2", "--trainer.max_epochs=1", "--trainer.fast_dev_run=2", "--model.init_from=null",
        "--model.size=32", "--compare_with=[]", f"--model.head={here}.PrototypeHead",
        f"--model.metric_loss={here}.Contrastive", "--model.metric_loss.margin=0.5",
    ])  # fmt: skip


def test_an_expert_classifies_once_it_has_a_head(photos):
    model = expert(metric_loss=None)
    assert not model.classifies and not Evaluation(model.encoder).classifies
    trainer().fit(model, data(photos))
    assert model.classifies


def test_it_is_compared_with_its_start_and_with_random_weights(photos, tmp_path):
    torch.manual_seed(1)
    first = expert(metric_loss=None)
    assert list(first.baselines()) == ["untrained"], "they are the same"
    torch.manual_seed(2)  # of the run that starts from it
    zoo.save(first.encoder, tmp_path / "start")
    model = Expert(init_from=str(tmp_path / "start"), metric_loss=None)
    before = model.baselines()
    assert list(before) == [str(tmp_path / "start"), "untrained"]
    trainer().fit(model, data(photos))
    start, untrained = (root.encoder.state_dict() for root in before.values())
    kept = first.encoder.state_dict()
    weights = [name for name, value in kept.items() if name.endswith("weight") and value.ndim > 1]
    assert all(torch.equal(start[name], kept[name]) for name in kept), "a copy that training leaves alone"
    assert any(not torch.equal(untrained[name], kept[name]) for name in weights)
    assert any(not torch.equal(model.encoder.state_dict()[name], kept[name]) for name in weights)
    with model.seeded():
        again = expert().encoder.state_dict()
    assert all(torch.equal(untrained[name], again[name]) for name in again), "drawn with the seed of the run"


def test_what_is_saved_is_tested_as_it_was(photos, tmp_path):
    model, run = expert(category="pet"), trainer()
    run.fit(model, data(photos))
    run.test(model, data(photos), verbose=False)
    card = model.save_component(tmp_path / "expert", name="my_pets", recipe="python -m x", scores=model.scores)
    assert (card.name, card.category, card.recipe) == ("my_pets", "pet", "python -m x")
    assert card.training_data.startswith(f"{photos.name}: train ")
    assert list(card.scores[0].values)[:2] == ["rank1", "mAP"]
    assert card.scores[0].values["mAP"] == round(model.scores[ScoreName("mAP")], 4)
    assert not any("queries" in name for name in card.scores[0].values)
    peer = model.peer(str(tmp_path / "expert"))
    trainer().test(peer, data(photos), verbose=False)
    assert peer.scores == pytest.approx(dict(model.scores))
    assert zoo.card(tmp_path / "expert").scores == card.scores


def test_a_peer_must_be_an_encoder():
    with pytest.raises(ValueError, match="vlm_qwen25vl3m.world is a .*, not an identity encoder"):
        expert().peer("vlm_qwen25vl3m.world")
