"""On a GPU: what a build draws there, with CUDA graphs and without, with little memory, and once more."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from running import run, write_spec

from synthfactory.model.folder import open_model
from synthfactory.model.weights import load_model
from synthfactory.run.probe import SHARE, SIZES, probe_batch
from synthfactory.sample.engine import Engine
from synthfactory.spec.load import load_spec
from synthfactory.spec.sampler import Guidance, Sampler

pytestmark = pytest.mark.gpu

HERE = Path(__file__).parents[2]
SAMPLER = Sampler(solver="ab2", steps=10, guidance=Guidance(scale=1.5, high=0.8))
KEYS = [(number, 7) for number in range(8)]


def conditions() -> np.ndarray:
    config = open_model("phantom").config["sit"]
    deviates = np.random.default_rng(3).standard_normal((len(KEYS), config["condition_width"]))
    return (config["condition_mean"] + config["condition_std"] * deviates).astype(np.float32)


def engine(**given: object) -> Engine:
    device = given.pop("device", "cuda")
    return Engine(load_model(open_model("phantom"), device=torch.device(str(device))), **given)  # type: ignore[arg-type]


def levels_off(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other.astype(int))


def spec(folder: Path, **changes: object) -> Path:
    given = {
        "model": "phantom",
        "classes": {"phantom-gland": 12, "phantom-stroma": 9},
        "embeddings": {"bank": str(HERE / "specs/phantom-bank.parquet")},
        "sampler": json.loads(SAMPLER.model_dump_json()),
        "screen": {"agreement": {"min": 0.0}},
        "output": {"path": str(folder / "out"), "shard_size": 7},
        "lineage": str(folder / "lineage"),
        **changes,
    }
    folder.mkdir(exist_ok=True)
    return write_spec(folder / "spec.yaml", **given)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out/shards").iterdir())}


def test_a_gpu_draws_what_a_cpu_draws() -> None:
    there, here = (engine(device=device).draw(conditions(), KEYS, SAMPLER) for device in ("cuda", "cpu"))
    off = levels_off(there, here)
    assert off.mean() < 0.1, off.mean()
    assert (off > 2).mean() < 1e-3


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
@pytest.mark.parametrize(("dtype", "mean"), [("float32", 0.1), ("bfloat16", 2.0)])
def test_graphs_draw_what_kernels_draw_in_batches_of_any_size(dtype: str, mean: float) -> None:
    """The second batch replays the first's graph, on other conditions and fewer tiles."""
    plain = engine(dtype=dtype)
    compiled = engine(dtype=dtype, compiled=True, full_rows=len(KEYS))
    for number in range(3):
        count = len(KEYS) - number
        given, keys = conditions()[::-1][:count].copy(), KEYS[number:]
        off = levels_off(compiled.draw(given, keys, SAMPLER), plain.draw(given, keys, SAMPLER))
        assert off.mean() < mean, (number, off.mean())


def test_embeddings_that_come_along_are_those_of_the_tiles() -> None:
    found = engine()
    tiles, embeddings = found.begin(conditions(), KEYS, SAMPLER, embed=True).wait()
    np.testing.assert_allclose(embeddings, found.model.embed(tiles), rtol=1e-3, atol=1e-3)


def test_a_build_is_verified_and_another_one_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        ended = run("build", spec(tmp_path / name), "--local")
        assert ended.code == 0, ended.err
        assert run("verify", tmp_path / name / "out").code == 0
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    commit = json.loads(next((tmp_path / "one/out/commits").iterdir()).read_text())
    assert commit["fingerprint"]["device"] == torch.cuda.get_device_name()


def test_memory_that_is_short_halves_the_batch(tmp_path: Path) -> None:
    """Really short: what is left of the device is what a batch of 8 takes, and a little."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    found = engine()
    torch.cuda.reset_peak_memory_stats()
    found.draw(conditions(), KEYS, SAMPLER)
    enough = before + 1.3 * (torch.cuda.max_memory_reserved() - before)
    del found
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(enough / torch.cuda.get_device_properties(0).total_memory)
    try:
        execution = {"batch_size": 128, "compile": False}
        many = spec(tmp_path, classes={"phantom-gland": 128}, screen={}, execution=execution, output={
            "path": str(tmp_path / "out"), "shard_size": 128})  # fmt: skip
        ended = run("build", many, "--local")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert ended.code == 0, ended.err
    commit = json.loads(next((tmp_path / "out/commits").iterdir()).read_text())
    assert commit["fingerprint"]["batch_size"] < 128
    assert run("verify", tmp_path / "out").code == 0


def test_the_batch_of_a_first_build_fits(tmp_path: Path) -> None:
    found = probe_batch(load_spec(str(spec(tmp_path))))
    assert found in SIZES
    torch.cuda.reset_peak_memory_stats()
    probed = engine()
    many = -(-found // len(KEYS))
    given, keys = np.tile(conditions(), (many, 1))[:found], [(number, 1) for number in range(found)]
    probed.begin(given, keys, SAMPLER, embed=True).wait()
    assert torch.cuda.max_memory_allocated() <= SHARE * torch.cuda.get_device_properties(0).total_memory
