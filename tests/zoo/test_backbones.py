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


@pytest.mark.parametrize(
    ("backbone", "pool"),
    [
        *(("mobilenetv3_small_050", pool) for pool in (None, "max", "avgmax")),
        *(("test_resnet", pool) for pool in (None, "max", "avgmax", "catavgmax")),
        *(("test_convnext", pool) for pool in (None, "max")),
    ],
)
def test_tokens_of_a_map_go_through_the_head_one_by_one(backbone, pool):
    """So those of an image with a single place are its features, whatever pools them."""
    torch.manual_seed(0)
    encoder = TimmEncoder(backbone, size=96, pool=pool).eval()
    images = torch.randn(2, 3, 96, 96)
    tokens = encoder.tokens(images)
    places = encoder.trunk.forward_features(images).shape[2:]
    assert tokens.shape == (2, places[0] * places[1], encoder.embed_dim) and places == (3, 3)
    single = images[..., :32, :32]
    assert torch.allclose(encoder.tokens(single)[:, 0], encoder.features(single), atol=1e-6)
    assert tokens[:, 0].sub(tokens[:, 4]).abs().max() > 1e-6
    assert torch.allclose(encoder.tokens(images[:1]), tokens[:1], atol=1e-5), "batched equals single"
    assert encoder.tokens(images[:0]).shape == (0, *tokens.shape[1:])


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "swin_s3_tiny_224"])
def test_the_mean_of_tokens_is_features_where_nothing_stands_between(backbone):
    torch.manual_seed(0)
    encoder = TimmEncoder(backbone).eval()
    images = torch.randn(2, 3, *encoder.transform.size)
    assert torch.allclose(encoder.tokens(images).mean(dim=1), encoder.features(images), atol=1e-5)


def test_places_are_numbered_row_by_row():
    encoder = TimmEncoder("test_resnet", size=(64, 128)).eval()
    images = torch.randn(1, 3, 64, 128)
    found = encoder.trunk.forward_features(images)
    rows, columns = found.shape[2:]
    tokens = encoder.tokens(images)
    assert rows < columns and torch.allclose(tokens[0, columns + 2], found[0, :, 1, 2], atol=1e-6)


def test_a_head_between_is_linear_before_its_activation():
    """MobileNetV3 puts a convolution and an activation between pooling and features."""
    encoder = TimmEncoder("mobilenetv3_small_050", size=96).eval()
    encoder.trunk.act2 = torch.nn.Identity()
    images = torch.randn(2, 3, 96, 96)
    assert torch.allclose(encoder.tokens(images).mean(dim=1), encoder.features(images), atol=1e-6)


@pytest.mark.parametrize(("backbone", "pool"), [("test_vit", "avg"), ("test_vit", None), ("test_vit3", None)])
def test_tokens_of_a_transformer_are_its_patches(backbone, pool):
    torch.manual_seed(0)
    encoder = TimmEncoder(backbone, size=64, pool=pool).eval()
    trunk, images = encoder.trunk, torch.randn(2, 3, 64, 64)
    tokens = encoder.tokens(images)
    assert tokens.shape == (2, 16, encoder.embed_dim)
    patches = trunk.forward_features(images)[:, trunk.num_prefix_tokens :]
    assert torch.equal(tokens, trunk.fc_norm(patches))
    if trunk.global_pool == "avg":
        assert torch.allclose(trunk.fc_norm(patches.mean(dim=1)), encoder.features(images), atol=1e-5)


def test_tokens_reach_the_trunk_by_gradients_but_not_the_neck():
    encoder = TimmEncoder("test_resnet", size=64)
    encoder.tokens(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert encoder.bnneck.weight.grad is None
    assert all(parameter.grad is not None for parameter in encoder.trunk.parameters())


@pytest.mark.parametrize("backbone", ["pit_ti_224", "crossvit_tiny_240"])
def test_a_trunk_without_patch_tokens_says_so(backbone):
    encoder = TimmEncoder(backbone).eval()
    with pytest.raises(TypeError, match=f"'{backbone}'.*gives no tokens of width {encoder.embed_dim}"):
        encoder.tokens(torch.randn(1, 3, *encoder.transform.size))
