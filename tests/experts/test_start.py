"""The encoder that training starts from: its size, and what is refused beside a card."""

from pathlib import Path

import pytest
import torch

import zoo
from experts.expert import Expert
from experts.general import GeneralEncoder
from experts.start import Start
from zoo.backbones import TimmEncoder


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of an encoder of 48 x 32 pixels."""
    folder = tmp_path_factory.mktemp("start")
    zoo.save(TimmEncoder("test_resnet", size=(48, 32)), folder / "encoder", name="start")
    return str(folder / "encoder")


@pytest.mark.parametrize("root", [Expert, GeneralEncoder])
@pytest.mark.parametrize(
    ("of_start", "size", "wanted"),
    [(None, None, (48, 32)), ((64, 40), None, (64, 40)), (40, None, (40, 40)), ((64, 40), 56, (56, 56))],
)
def test_a_size_goes_before_that_of_the_start_which_goes_before_that_of_the_card(root, of_start, size, wanted, card):
    model = root(init_from=Start(card, of_start), size=size)
    assert model.transform.size == wanted and model.start == card
    for name, tensor in zoo.load(card).state_dict().items():
        assert torch.equal(tensor, model.encoder.state_dict()[name]), name


def test_a_card_by_itself_is_taken_at_its_own_size(card):
    assert Expert(init_from=card).transform.size == (48, 32)
    assert Expert(init_from=card, size=(32, 48)).transform.size == (32, 48)


def test_hyperparameters_of_a_start_are_plain_and_make_the_same_encoder_again(card):
    model = Expert(init_from=Start(card, (64, 40)))
    assert model.hparams["init_from"] == {"card": card, "size": (64, 40)}
    again = Expert(init_from=model.hparams["init_from"])
    assert again.transform.size == (64, 40) and again.start == card


def test_from_scratch_the_backbone_has_its_own_size_unless_one_is_given():
    own = TimmEncoder("test_resnet").transform.size
    assert Expert(backbone="test_resnet").transform.size == own != (32, 24)
    assert Expert(backbone="test_resnet", size=(32, 24)).transform.size == (32, 24)
    assert Expert(backbone="test_resnet").start == "untrained"


def test_an_architecture_beside_a_card_and_a_card_of_something_else_are_refused(card, tmp_path: Path):
    with pytest.raises(ValueError, match="pool max would be ignored"):
        Expert(init_from=Start(card, 40), pool="max")
    from fusion import AdditiveFusion

    zoo.save(AdditiveFusion(8, 4), tmp_path / "adapter", name="adapter")
    with pytest.raises(ValueError, match="is a AdditiveFusion, not an encoder"):
        Expert(init_from=str(tmp_path / "adapter"))
