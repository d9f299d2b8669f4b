"""Networks: published sizes and names, shapes, and what normalisation promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthfactory.model.interpolant import noised, score_from_velocity, velocity_target
from synthfactory.model.sit import SiT, SiTConfig, sincos_positions
from synthfactory.model.vae import VAE, VAEConfig, pixels_from_uint8, pixels_to_uint8
from synthfactory.model.vit import ViT, ViTConfig, parameter_count

TINY = SiTConfig(
    latent_size=8,
    width=32,
    depth=2,
    heads=2,
    condition_width=12,
    projection_depth=1,
    projection_hidden=16,
    projection_width=6,
)


def tiny_sit() -> SiT:
    sit = SiT(TINY)
    sit.initialise(torch.Generator().manual_seed(0))
    return sit.eval()


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        (lambda: SiT(SiTConfig()), 682.9),
        (lambda: SiT(SiTConfig(projection_depth=None)), 674.8),
        (lambda: VAE(VAEConfig()), 83.7),
        (lambda: ViT(ViTConfig()), 85.7),
    ],
    ids=["SiT-XL/2", "SiT-XL/2 without projector", "SD-VAE f8d4", "H0-mini"],
)
def test_default_configs_have_the_published_sizes(build, millions):
    with torch.device("meta"):
        assert parameter_count(build()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_state_dict_names_are_those_of_repa_e_and_timm():
    names = set(tiny_sit().state_dict())
    for name in (
        "x_embedder.proj.weight", "t_embedder.mlp.0.weight", "t_embedder.mlp.2.bias", "pos_embed", "blocks.1.attn.qkv.weight",
        "blocks.0.attn.proj.bias", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight", "blocks.0.adaLN_modulation.1.weight",
        "projectors.0.0.weight", "projectors.0.2.weight", "projectors.0.4.weight", "final_layer.linear.weight",
        "final_layer.adaLN_modulation.1.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked",
    ):  # fmt: skip
        assert name in names
    vit = set(ViT(ViTConfig(width=16, depth=1, heads=2, mlp_hidden=32)).state_dict())
    assert {
        "cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.attn.qkv.bias",
        "blocks.0.ls1.gamma", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.bias", "blocks.0.ls2.gamma", "norm.weight",
    } <= vit  # fmt: skip


def test_sit_gives_velocity_and_projection_and_honours_the_null():
    sit = tiny_sit()
    torch.nn.init.normal_(sit.final_layer.linear.weight, std=0.1)  # zero at the start, which would hide everything
    for block in sit.blocks:
        torch.nn.init.normal_(block.adaLN_modulation[1].weight, std=0.1)
    x, t = torch.randn(3, 4, 8, 8), torch.rand(3)
    a, b = torch.randn(3, 12), torch.randn(3, 12)
    velocity, projection = sit(x, t, a, project=True)
    assert velocity.shape == (3, 4, 8, 8)
    assert projection.shape == (3, 16, 6)
    nulls = torch.tensor([True, False, True])
    one, other = sit(x, t, a, nulls)[0], sit(x, t, b, nulls)[0]
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[2], other[2])
    assert not torch.allclose(one[1], other[1])


def test_patches_come_back_where_they_were():
    sit = tiny_sit()
    image = torch.arange(4 * 8 * 8, dtype=torch.float32).reshape(1, 4, 8, 8)
    p, g = 2, 4
    tokens = image.reshape(1, 4, g, p, g, p).permute(0, 2, 4, 3, 5, 1).reshape(1, g * g, p * p * 4)
    assert torch.equal(sit._unpatchify(tokens), image)


def test_positions_are_distinct_and_follow_the_2d_grid():
    table = sincos_positions(32, 4)[0].reshape(4, 4, 32)
    assert torch.allclose(table[0, 1, :16], table[3, 1, :16])  # first half: the column
    assert torch.allclose(table[2, 0, 16:], table[2, 3, 16:])  # second half: the row
    assert len({tuple(row.tolist()) for row in table.reshape(16, 32)}) == 16


def test_latent_normalisation_is_invertible_and_uses_the_statistics():
    sit = tiny_sit()
    sit.bn.running_mean.copy_(torch.tensor([1.0, -2.0, 0.0, 3.0]))
    sit.bn.running_var.copy_(torch.tensor([4.0, 1.0, 0.25, 9.0]))
    latents = torch.randn(2, 4, 8, 8)
    normal = sit.normalise(latents)
    assert torch.allclose(sit.denormalise(normal), latents, atol=1e-5)
    assert torch.allclose(normal[:, 0], (latents[:, 0] - 1.0) / 2.0, atol=1e-3)


def test_interpolant_ends_and_score():
    x0, noise = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    assert torch.equal(noised(x0, noise, torch.zeros(2)), x0)
    assert torch.equal(noised(x0, noise, torch.ones(2)), noise)
    t = 0.3
    x = noised(x0, noise, torch.full((2,), t, dtype=torch.float64))
    score = score_from_velocity(velocity_target(x0, noise), x, t)
    assert torch.allclose(score, -noise / t)  # the score of N((1-t) x0, t^2) at x is -noise / t


def test_vae_shapes_with_and_without_unshuffle():
    small = VAE(VAEConfig(unshuffle=4, channels=(16, 32), layers_per_block=1, norm_groups=8, mid_attention=False))
    assert small.config.factor == 8
    mean, log_variance = small.encode(torch.zeros(1, 3, 64, 64))
    assert mean.shape == log_variance.shape == (1, 4, 8, 8)
    assert small.decode(mean).shape == (1, 3, 64, 64)


def test_pixels_survive_the_way_through_floats():
    images = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert torch.equal(pixels_to_uint8(pixels_from_uint8(images)), images)


def test_embedding_refuses_other_pixels():
    vit = ViT(ViTConfig(width=16, depth=1, heads=2, mlp_hidden=32))
    vit.initialise(torch.Generator().manual_seed(1))
    assert vit.embed(np.zeros((3, 224, 224, 3), np.uint8), batch_size=2).shape == (3, 16)
    with pytest.raises(ValueError, match="uint8"):
        vit.embed(np.zeros((1, 224, 224, 3), np.float32))
