"""The engine: number formats, batches, what is computed once, and what happens when memory is short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tinymodel import EMBEDDING, make_tiny_model

from synthfactory.model.folder import open_model
from synthfactory.model.weights import LoadedModel, load_model
from synthfactory.sample.engine import Engine
from synthfactory.sample.network import Network
from synthfactory.sample.noise import mersenne
from synthfactory.spec.sampler import Guidance, Sampler

SAMPLER = Sampler(steps=3, guidance=Guidance(scale=2.0, high=0.8))
KEYS = [(number, 7) for number in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(folder: Path) -> LoadedModel:
    return load_model(open_model(str(folder)))


def conditions(count: int = 6) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, EMBEDDING)).astype(np.float32)


def test_one_pass_with_both_halves_is_two_passes(model: LoadedModel) -> None:
    """The network's velocity against the plain definition of guidance, two calls of SiT."""
    guidance = Guidance(scale=2.5, low=0.2, high=0.8)
    given = torch.from_numpy(conditions())
    x = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        velocity = Network(model.sit, torch.float32).velocity(given, guidance)
        for t in (1.0, 0.8, 0.5, 0.2, 0.1):
            times = torch.full((6,), t)
            alone = model.sit(x, times, given)[0]
            null = model.sit(x, times, given, torch.ones(6, dtype=torch.bool))[0]
            wanted = null + 2.5 * (alone - null) if 0.2 <= t <= 0.8 else alone
            torch.testing.assert_close(velocity(x, t), wanted, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_near_float32_and_keeps_its_state_in_float32(folder: Path, model: LoadedModel) -> None:
    plain = Engine(model).draw(conditions(), KEYS, SAMPLER)
    half = Engine(load_model(open_model(str(folder))), dtype="bfloat16")
    assert half.model.sit.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert half.model.sit.final_layer.linear.weight.dtype == torch.float32
    tiles = half.draw(conditions(), KEYS, SAMPLER)
    off = np.abs(tiles.astype(int) - plain.astype(int))
    assert off.max() > 0, "bfloat16 was not used"
    assert off.mean() < 2.0


def test_embeddings_that_come_along_are_those_of_the_encoder(model: LoadedModel) -> None:
    drawn = Engine(model).begin(conditions(), KEYS, SAMPLER, embed=True)
    tiles, embeddings = drawn.wait()
    assert embeddings is not None
    np.testing.assert_allclose(embeddings, model.embed(tiles), rtol=1e-5, atol=1e-5)


def test_a_network_that_gives_nan_is_named(model: LoadedModel) -> None:
    model.sit.final_layer.linear.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        Engine(model).draw(conditions(), KEYS, SAMPLER)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_network_draws_the_same_in_batches_of_any_size(folder: Path, model: LoadedModel) -> None:
    plain = Engine(model).draw(conditions(), KEYS, SAMPLER)
    compiled = Engine(load_model(open_model(str(folder))), compiled=True, full_rows=8)
    for count in (6, 3):
        tiles = compiled.draw(conditions()[:count], KEYS[:count], SAMPLER)
        assert np.abs(tiles.astype(int) - plain[:count].astype(int)).max() <= 1


def test_a_pipelines_generator_takes_the_whole_key() -> None:
    """manual_seed would take 32 bits of it: a secret key could be found by trying."""
    drawn = [
        torch.randn(64, generator=mersenne(key)) for key in ((5, 1), (5, 1), (5 | 1 << 40, 1), (5, 2), (5, 1 | 1 << 63))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert all(not torch.equal(drawn[0], other) for other in drawn[2:])
    many = torch.randn(100_000, generator=mersenne((1, 2)))
    assert abs(float(many.mean())) < 0.02 and abs(float(many.std()) - 1) < 0.02
