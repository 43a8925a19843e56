import pytest
import torch

import zoo
from zoo.backbones import TimmEncoder

BACKBONES = ["mobilenetv3_small_050", "test_vit", "test_resnet", "test_convnext"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_encoder_keeps_its_contract(backbone):
    torch.manual_seed(0)
    encoder = TimmEncoder(backbone, size=64)
    images = torch.randn(4, 3, 64, 64)
    encoder.train()
    features = encoder.features(images)
    assert features.shape == encoder.neck(features).shape == (4, encoder.embed_dim)
    encoder(images).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    embeddings = encoder.embed(images)
    assert encoder.training and embeddings.dtype == torch.float32 and not embeddings.requires_grad
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(4), atol=1e-5)
    assert torch.allclose(encoder.embed(images[:1]), embeddings[:1], atol=1e-5), "batched equals single"
    assert encoder.transform.size == (64, 64)


def test_the_bnneck_has_no_bias_to_train():
    encoder = TimmEncoder(size=32)
    assert not encoder.bnneck.bias.requires_grad and encoder.bnneck.weight.requires_grad
    bare = TimmEncoder(size=32, neck=None).train()
    features = bare.features(torch.randn(2, 3, 32, 32))
    assert bare.neck(features) is features


def test_layer_rates_fall_from_output_to_input():
    encoder = TimmEncoder("test_vit", size=32)
    rates = encoder.layer_rates(0.5)
    assert set(rates) == {name for name, _ in encoder.named_parameters() if name.startswith("trunk.")}
    assert rates["trunk.norm.weight"] == 0.5
    blocks = [rates[f"trunk.blocks.{i}.attn.qkv.weight"] for i in range(6)]
    assert all(later == 2 * earlier for earlier, later in zip(blocks, blocks[1:], strict=False))
    assert rates["trunk.patch_embed.proj.weight"] == min(rates.values())


def test_height_and_width_may_differ():
    encoder = TimmEncoder("test_vit", size=(64, 32))
    assert encoder.embed(torch.randn(1, 3, 64, 32)).shape == (1, encoder.embed_dim)
    assert encoder.transform.size == (64, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "mobilenetv3_smal_050"}, "Did you mean mobilenetv3_small_050"),
        ({"pool": "mean"}, "pool='mean'"),
        ({"backbone": "test_vit", "size": 40}, "multiples of 16, such as 32"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TimmEncoder(**options)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_a_resized_encoder_is_saved_and_loaded_at_its_new_size(backbone, tmp_path):
    encoder = TimmEncoder(backbone).eval()
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items() if "pos_embed" not in name}
    encoder.resize((96, 64))
    assert encoder.transform.size == (96, 64)
    assert shapes == {name: tensor.shape for name, tensor in encoder.state_dict().items() if "pos_embed" not in name}
    images = torch.randn(2, 3, 96, 64)
    zoo.save(encoder, tmp_path / "encoder")
    again = zoo.load(tmp_path / "encoder")
    assert again.transform == encoder.transform and torch.equal(again.embed(images), encoder.embed(images))


def test_a_size_between_patches_is_refused_also_later():
    with pytest.raises(ValueError, match="does not divide into the 16x16 patches"):
        TimmEncoder("test_vit").resize((100, 64))


def test_options_reach_the_architecture_and_its_card(tmp_path):
    encoder = TimmEncoder("test_vit", options={"drop_path_rate": 0.2})
    rates = [module.drop_prob for module in encoder.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2)
    zoo.save(encoder, tmp_path / "encoder")
    assert zoo.card(tmp_path / "encoder").init["options"] == {"drop_path_rate": 0.2}
    with pytest.raises(ValueError, match="could not build backbone 'test_vit'.*drop_pth_rate"):
        TimmEncoder("test_vit", options={"drop_pth_rate": 0.2})
