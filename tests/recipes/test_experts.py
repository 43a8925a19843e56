"""Every expert recipe as its user runs it: a test reproduces the scores of the card, also on data that lacks a lot."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import zoo
from recipes.cli import RecipeCLI
from tests.conftest import draw_identity
from zoo.data.index import IdentityIndex
from zoo.scores import ScoreName

QUICK = ["--data.workers=0", "--pictures.every_n_epochs=0"]
WORLD = [
    "--data.world.families=6", "--data.world.members=3", "--data.world.views=4", "--data.world.size=32",
    "--data.identities_per_batch=4", "--data.val_share=0.25",
]  # fmt: skip
SHORT = ["--model.init_from=null", "--trainer.max_epochs=1", "--data.steps_per_epoch=3", "--compare_with=[]"]
# Recipe -> an input size that is not the recipe's own, and scores that its card must have beside rank1 and mAP.
EXPERTS = {
    "expert_reid": ((48, 32), {"clothes=same/rank1", "clothes=changed/rank1"}),
    "expert_face": ((40, 48), set()),
    "expert_pet": ((32, 32), {"closed_top1", "closed_top5", "roc_auc"}),
    "expert_object": ((32, 40), {"rank100"}),
}


def run(recipe: str, command: str, *flags: str) -> RecipeCLI:
    return import_module(f"recipes.{recipe}").main([command, *QUICK, *flags])


def run_folder(of: RecipeCLI) -> Path:
    return Path(of.trainer.log_dir)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("recipe", EXPERTS)
def test_test_reproduces_every_score_of_the_card(recipe):
    """At the size that the expert was trained at, which the command does not repeat."""
    size, expected = EXPERTS[recipe]
    fitted = run(recipe, "fit", *WORLD, *SHORT, f"--model.size={list(size)}")
    folder = run_folder(fitted) / "expert"
    card = zoo.card(folder)
    tested = run(recipe, "test", *WORLD, f"--model.init_from={folder}")
    assert tested.model.transform.size == zoo.load(folder).transform.size == size
    found = {name.removeprefix("test/"): float(value) for name, value in tested.trainer.callback_metrics.items()}
    assert found == {str(name): value for name, value in tested.results["test"].items()}
    on_card = card.scores[0].values
    assert {"rank1", "mAP", "far", "frr"} | expected <= set(on_card) <= set(found)
    assert on_card == pytest.approx({name: found[name] for name in on_card}, abs=1e-4)
    assert list(fitted.results) == ["untrained", "trained"] and list(tested.results) == ["test"]
    assert fitted.results["trained"] == pytest.approx(tested.results["test"], abs=1e-4)
    queries = ScoreName("queries")
    assert fitted.results["untrained"][queries] == fitted.results["trained"][queries] > 0


def printed_model(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, object]:
    with pytest.raises(SystemExit) as end:
        run("expert_reid", "fit", *flags, "--print_config")
    assert not end.value.code
    return yaml.safe_load(capsys.readouterr().out)["model"]


def test_the_size_of_a_recipe_belongs_to_the_card_that_it_starts_from(capsys):
    """Another card, or a backbone from scratch, has its own unless one is given."""
    person, general = "person_mobilenetv3s050.world", "general_mobilenetv3s050.world"
    wanted = {
        (): ({"card": general, "size": [128, 64]}, None),
        (f"--model.init_from={person}",): (person, None),
        ("--model.init_from", "null"): (None, None),
        ("--model.size=[64,32]",): ({"card": general, "size": [128, 64]}, [64, 32]),
        ("--model.init_from=null", "--model.size=[64,32]"): (None, [64, 32]),
        ("--model.init_from.size=96",): ({"card": general, "size": 96}, None),
    }
    for flags, (start, size) in wanted.items():
        model = printed_model(capsys, *flags)
        assert (model["init_from"], model["size"]) == (start, size), flags


def test_persons_start_from_the_general_encoder_at_their_size(capsys):
    """And a resumed run has the same start as the checkpoint."""
    fitted = run("expert_reid", "fit", *WORLD, "--trainer.max_epochs=1", "--data.steps_per_epoch=1")
    assert list(fitted.results) == ["untrained", "general_mobilenetv3s050.world", "trained"]
    assert zoo.load(run_folder(fitted) / "expert").transform.size == (128, 64)
    capsys.readouterr()
    last = run_folder(fitted) / "checkpoints/last.ckpt"
    tested = run("expert_reid", "test", *WORLD, f"--ckpt_path={last}")
    assert tested.model.transform.size == (128, 64)
    assert "the checkpoint was made with" not in capsys.readouterr().out


@pytest.fixture
def market(tmp_path: Path) -> Path:
    """8 + 4 persons before two cameras, in the layout of Market-1501; nothing is known of what they wear."""
    rng = np.random.default_rng(0)
    root = tmp_path / "Market-1501-v15.09.15"
    for person in range(1, 13):
        pattern = draw_identity(rng)
        for camera in (1, 2):
            folder = "bounding_box_train" if person <= 8 else "query" if camera == 1 else "bounding_box_test"
            (root / folder).mkdir(parents=True, exist_ok=True)
            for frame in range(1 if folder == "query" else 3):
                image = pattern + rng.normal(0, 20, pattern.shape)
                name = f"{person:04d}_c{camera}s1_{frame:06d}_00.jpg"
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / folder / name)
    return root


def test_persons_of_whom_no_attribute_is_known(market, capsys, caplog):
    """The recipe scores same and changed clothes apart, where clothes are known."""
    caplog.set_level("INFO")
    fitted = run("expert_reid", "fit", f"--data.root={market}", *SHORT, "--model.size=[48,24]", "--data.val_share=0.25")
    card = zoo.card(run_folder(fitted) / "expert")
    assert "rank1" in card.scores[0].values and not any("=" in name for name in card.scores[0].values)
    assert "no 'clothes'" in capsys.readouterr().out + caplog.text, "what is left out is named"


def test_with_all_identities_trained_on_the_expert_is_saved_and_nothing_is_tested(photos, capsys):
    shares = ["--data.val_share=0", "--data.test_share=0"]
    fitted = run("expert_pet", "fit", f"--data.root={photos}", *shares, *SHORT, "--model.size=32")
    folder = run_folder(fitted)
    assert set(IdentityIndex.load(folder / "manifest.csv", photos).splits) == {"train"}
    assert zoo.card(folder / "expert").scores == []
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in zoo.load(folder / "expert").state_dict().items():
        assert torch.equal(tensor, last[f"encoder.{name}"]), name
    printed = capsys.readouterr().out
    assert "othing" in printed and "tested" in printed and "identities never trained on" not in printed


def write_dozen(root: Path) -> Path:
    """12 identities with 5 images each: a patch of one pattern before ever other backgrounds."""
    rng = np.random.default_rng(3)
    for number in range(12):
        pattern = draw_identity(rng)
        (root / f"{number:02d}").mkdir(parents=True)
        for view in range(5):
            image = draw_identity(rng).astype(float)
            image[8:24, 8:24] = pattern[8:24, 8:24]
            image += rng.normal(0, 8, image.shape)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"{number:02d}/{view}.png")
    return root


def test_of_a_dozen_identities_the_best_epoch_is_chosen_by_what_can_err(tmp_path):
    """One identity to validate on would be found in every epoch, and the first would count as the best."""
    photos = write_dozen(tmp_path / "photos")
    flags = [*SHORT, "--model.size=32", "--trainer.max_epochs=4", "--data.steps_per_epoch=4"]
    folder = run_folder(run("expert_pet", "fit", f"--data.root={photos}", *flags))
    index = IdentityIndex.load(folder / "manifest.csv", photos)
    assert len(np.unique(index.identities[index.rows("val")])) >= 2
    events = EventAccumulator(str(folder))
    events.Reload()
    before, *after = [event.value for event in events.Scalars("val/mAP")]
    assert len(set(after)) > 1 and before < 1
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["epoch"]
    assert best == int(np.argmax(after)) > 0
