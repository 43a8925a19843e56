"""What a test reports, recomputed by hand from the embeddings; and what stops a run."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from sklearn.metrics import roc_auc_score

import zoo
from experts.expert import Expert
from tests.conftest import write_identities
from zoo.contracts import IdentityEncoder
from zoo.data.images import read_image
from zoo.data.module import InstanceData
from zoo.evaluation.evaluation import Evaluation, Protocol
from zoo.metrics import enrolled_identities
from zoo.transforms import Transform


class Pixels(IdentityEncoder):
    """Sees 4 x 4 pixels and says them."""

    embed_dim = 48
    transform = Transform((4, 4), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")

    def features(self, images):
        return images.flatten(1)

    def neck(self, features):
        return features


def petface(root: Path) -> Path:
    """Two families with five pets each, in PetFace's layout: 2 to train on, 1 to validate, 2 to test."""
    for family in ("cat", "dog"):
        images = write_identities(root / "images" / family, identities=5, views=4, seed=len(family))
        for number, folder in enumerate(sorted(images.iterdir())):
            folder = folder.rename(folder.with_name(f"{number:06d}"))
            for view in range(4):
                (folder / f"{view}.png").rename(folder / f"{view:02d}.png")
        name = f"{family}/{{:06d}}/{{:02d}}.png"
        split = root / "split" / family
        split.mkdir(parents=True)
        rows = {
            "train.csv": [["filename", "label"], *([name.format(i, v), i] for i in (0, 1) for v in range(3))],
            "reidentification.csv": [["filename", "label"], *([name.format(i, 3), i] for i in (0, 1))],
            "val.txt": [[name.format(2, v)] for v in range(4)],
            "test.txt": [[name.format(i, v)] for i in (3, 4) for v in range(4)],
            "verification.csv": [
                ["filename1", "filename2", "label"],
                *(
                    [name.format(a, v), name.format(b, 3 - v), int(a == b)]
                    for a in (3, 4)
                    for b in (3, 4)
                    for v in (0, 1)
                ),
            ],
        }
        for file, lines in rows.items():
            with open(split / file, "w", newline="") as stream:
                csv.writer(stream).writerows(lines)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return petface(tmp_path_factory.mktemp("petface"))


def trainer(**more) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **more,
    )  # fmt: skip


def embeddings(module: InstanceData, rows: np.ndarray) -> np.ndarray:
    images = [read_image(module.index.root / module.index.paths[row]) for row in rows]
    return Pixels().embed(torch.stack([Pixels.transform(image) for image in images])).numpy().astype(np.float64)


def test_thresholds_pairs_and_groups_equal_those_by_hand(data):
    module = InstanceData(root=str(data), workers=0)
    evaluation = Evaluation(Pixels(), protocol=Protocol(ks=(1, 2), far=0.25, group_by="category"))
    run = trainer()
    run.validate(evaluation, module, verbose=False)
    index = module.index

    def pairs_of(split: str) -> tuple[np.ndarray, np.ndarray]:
        rows = index.rows(split)
        similarity = embeddings(module, rows) @ embeddings(module, rows).T
        same = index.identities[rows][:, None] == index.identities[rows]
        upper = np.triu_indices(len(rows), 1)
        return similarity[upper], same[upper]

    scores, same = pairs_of("val")
    threshold = evaluation.encoder.threshold
    assert threshold.value == pytest.approx(min(t for t in scores if (scores[~same] >= t).mean() <= 0.25), abs=2e-2)
    assert threshold.far == pytest.approx((scores[~same] >= threshold.value).mean(), abs=1e-6)
    assert threshold.frr == pytest.approx((scores[same] < threshold.value).mean(), abs=1e-4)
    assert threshold.far <= 0.25

    found = run.test(evaluation, module, verbose=False)[0]
    scores, same = pairs_of("test")
    assert found["test/far"] == pytest.approx((scores[~same] >= threshold.value).mean(), abs=1e-6)
    assert found["test/frr"] == pytest.approx((scores[same] < threshold.value).mean(), abs=1e-6)

    rows = index.rows("test")
    similarity = embeddings(module, rows) @ embeddings(module, rows).T
    np.fill_diagonal(similarity, -2)
    nearest = index.identities[rows][similarity.argmax(1)] == index.identities[rows]
    for family in ("cat", "dog"):
        group = index.categories[rows] == family
        assert found[f"test/category={family}/rank1"] == pytest.approx(nearest[group].mean())
    assert found["test/rank1"] == pytest.approx(nearest.mean())

    first, second = embeddings(module, index.pairs.first), embeddings(module, index.pairs.second)
    auc = roc_auc_score(index.pairs.same, (first * second).sum(1))
    assert found["test/roc_auc"] == pytest.approx(auc) and found["test/pairs"] == len(index.pairs.same) == 16

    known = set(enrolled_identities(torch.from_numpy(index.identities[rows])).tolist())
    enrolled = np.array([identity in known for identity in index.identities[rows]])
    assert 0 < enrolled.sum() < len(rows)
    similarity[:, ~enrolled] = -2
    sure = similarity.max(1) >= threshold.value
    right = index.identities[rows][similarity.argmax(1)] == index.identities[rows]
    assert found["test/dir"] == pytest.approx((sure & right)[enrolled].mean())
    assert found["test/false_alarms"] == pytest.approx(sure[~enrolled].mean())


def test_without_a_threshold_nothing_is_said_of_one(data):
    found = trainer().test(Evaluation(Pixels()), InstanceData(root=str(data), workers=0), verbose=False)[0]
    assert "test/rank1" in found and not {"test/far", "test/dir"} & set(found)


def expert(**more) -> Expert:
    return Expert(backbone="test_resnet", size=32, optim=zoo.Optim(lr=1e-3), metric_loss=None, **more)


def test_new_images_of_training_identities_are_named_by_the_head(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "experts")
    module = InstanceData(root=str(data), workers=0, identities_per_batch=4, images_per_identity=2)
    model, run = expert(), trainer(max_epochs=2)
    run.fit(model, module)
    found = run.test(model, module, verbose=False)[0]
    rows = module.index.rows("closed")
    assert len(rows) == 4
    images = torch.stack([model.transform(read_image(data / module.index.paths[row])) for row in rows])
    with torch.no_grad():
        order = model.head.logits(model.eval()(images)).argsort(dim=1, descending=True)
    named = model.classes[order]
    truth = torch.from_numpy(module.index.identities[rows])[:, None]
    for k in (1, 2, 3, 4):
        assert found[f"test/closed_top{k}"] == pytest.approx(float((named[:, :k] == truth).any(1).float().mean()))
    assert "test/closed_top5" not in found, "there are four"

    zoo.save(model.encoder, tmp_path / "expert", head=model.head_tensors())
    again = expert_of(tmp_path / "expert")
    assert trainer().test(again, InstanceData(root=str(data), workers=0), verbose=False)[0] == pytest.approx(found)

    run.save_checkpoint(tmp_path / "run.ckpt")
    tested = trainer().test(expert(), InstanceData(root=str(data), workers=0), tmp_path / "run.ckpt", verbose=False)[0]
    assert tested == pytest.approx(found)

    others = petface(tmp_path / "others")  # as many, of other names
    for place in ("images/cat", "split/cat"):
        (others / place).rename(others / place.replace("cat", "fox"))
    for listed in (others / "split/fox").iterdir():
        listed.write_text(listed.read_text().replace("cat/", "fox/"))
    strangers = trainer().test(expert_of(tmp_path / "expert"), InstanceData(root=str(others), workers=0), verbose=False)
    assert "test/rank1" in strangers[0] and "test/closed_top1" not in strangers[0]
    assert "was trained on other identities" in caplog.text


def expert_of(card: Path) -> Expert:
    return Expert(init_from=str(card), metric_loss=None)


def test_without_its_head_the_closed_set_is_left_out_and_said_so(data, tmp_path, caplog):
    caplog.set_level(logging.INFO, "experts")
    zoo.save(expert().encoder, tmp_path / "expert")
    found = trainer().test(expert_of(tmp_path / "expert"), InstanceData(root=str(data), workers=0), verbose=False)[0]
    assert "test/rank1" in found and "test/closed_top1" not in found
    assert "is left out: it comes without its head" in caplog.text


def test_a_loss_that_is_no_number_stops_with_the_paths_of_its_batch(data):
    module = InstanceData(root=str(data), workers=0, identities_per_batch=2, images_per_identity=2, steps_per_epoch=3)
    with pytest.raises(ValueError, match="(?s)loss is nan or infinite, at step .*images/(cat|dog)/00000[01]/0.*lr"):
        trainer(max_epochs=1).fit(expert(head_weight=float("nan")), module)


def test_an_embedding_that_is_no_number_stops_with_its_own_path(data):
    class Broken(Pixels):
        def features(self, images):
            features = images.flatten(1).clone()
            features[len(features) // 2] = float("nan")
            return features

    module = InstanceData(root=str(data), workers=0)
    with pytest.raises(ValueError, match="embedding is nan") as stopped:
        trainer().test(Evaluation(Broken()), module, verbose=False)
    rows = module.index.rows("test")
    named = [path for path in module.index.paths if path in str(stopped.value)]
    assert named == [module.index.paths[rows[len(rows) // 2]]]


def test_without_validation_identities_every_identity_is_trained_on(photos):
    module = InstanceData(root=str(photos), workers=0, val_share=0.0, identities_per_batch=4, steps_per_epoch=2)
    run = trainer(max_epochs=1)
    run.fit(expert(), module)
    assert not len(module.index.rows("val")) and run.global_step == 2


def market(root: Path, cameras: int) -> Path:
    """Six persons to train on and four to test, from one camera or several."""
    for folder, first, count in (("bounding_box_train", 1, 6), ("query", 11, 4), ("bounding_box_test", 11, 4)):
        images = write_identities(root / f".{folder}", identities=count, views=2, seed=first)
        (root / folder).mkdir()
        for number, person in enumerate(sorted(images.iterdir())):
            for view in range(2):
                camera = 1 + (view + (folder == "query")) % cameras
                name = f"{first + number:04d}_c{camera}s1_{view + 2 * (folder == 'query'):06d}_01.png"
                (person / f"{view}.png").rename(root / folder / name)
    return root


def test_a_constant_camera_is_said_and_ignored(tmp_path, caplog):
    found = {}
    for cameras in (1, 2):
        module = InstanceData(root=str(market(tmp_path / str(cameras), cameras)), workers=0)
        found[cameras] = trainer().test(Evaluation(Pixels()), module, verbose=False)[0]
        assert ("all positives would be junk" in caplog.text) == (cameras == 1)
        caplog.clear()
        assert (module.index.cameras >= 0).any() == (cameras == 2)
    assert found[1]["test/queries"] == found[2]["test/queries"] == 8
    assert found[1]["test/queries_skipped"] == found[2]["test/queries_skipped"] == 0


def test_sources_are_joined_and_the_layout_is_found(data, tmp_path):
    from zoo.data.join import Source

    persons = market(tmp_path / "market", cameras=2)
    module = InstanceData(sources=[Source(str(persons)), Source(str(data), name="pets")], workers=0)
    assert {name.split("/")[0] for name in module.index.names} == {"market1501", "pets"}
    evaluation = Evaluation(Pixels())
    found = trainer().test(evaluation, module, verbose=False)[0]
    assert found["test/queries"] == 8 + 16
    for root, name in ((persons, "market1501"), (data, "pets")):
        alone = trainer().test(Evaluation(Pixels()), InstanceData(root=str(root), workers=0), verbose=False)[0]
        for score in ("rank1", "mAP", "mINP"):
            assert found[f"test/source={name}/{score}"] == pytest.approx(alone[f"test/{score}"]), "a gallery of its own"
    each = [found["test/source=market1501/mAP"], found["test/source=pets/mAP"]]
    assert found["test/mAP"] == pytest.approx(sum(each) / 2)


def test_a_threshold_of_other_weights_is_not_kept(data, tmp_path):
    start = expert().encoder
    start.threshold = zoo.Threshold(0.5, 0.01, 0.2, "elsewhere")
    zoo.save(start, tmp_path / "start")
    model = expert_of(tmp_path / "start")
    assert model.encoder.threshold.value == 0.5
    module = InstanceData(root=str(data), workers=0, identities_per_batch=2, images_per_identity=2, steps_per_epoch=1)
    trainer(max_epochs=1).fit(model, module)
    assert model.encoder.threshold is None
    resized = expert_of(tmp_path / "start").encoder
    resized.resize(64)
    assert resized.threshold is None


def test_an_image_of_an_identity_without_training_images_cannot_be_named_and_does_not_count(data, tmp_path):
    model = expert()
    module = InstanceData(root=str(data), workers=0, identities_per_batch=4, images_per_identity=2, steps_per_epoch=1)
    trainer(max_epochs=1).fit(model, module)
    rows = module.index.rows("closed")
    missing = module.index.identities[rows[-1]]
    keep = np.flatnonzero((module.index.identities != missing) | (module.index.splits != "train"))
    module._index = module.index.select(keep)
    model.classes = torch.from_numpy(module.train_identities)
    model.head = model.make_head(len(model.classes), model.encoder.embed_dim)
    found = trainer().test(model, module, verbose=False)[0]
    assert found["test/closed_top3"] == 1.0, "three are left, each of three classes is among the first three"


@pytest.mark.parametrize("wrong", [{"ks": ()}, {"ks": (0,)}, {"map_ks": (0,)}, {"far": 1.5}, {"expand": -1}])
def test_a_protocol_that_cannot_be_is_refused_before_training(wrong):
    with pytest.raises(ValueError, match=f"protocol.{next(iter(wrong))} cannot be"):
        Protocol(**wrong)
