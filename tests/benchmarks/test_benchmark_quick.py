"""The benchmark runs and gives every figure (none is asserted: they depend on the machine); memory stays flat where it must."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tinymodel
import utility
from bank import measure
from bench_parent import Child, Workshop, side_by_side

from synthfactory.phantom import CLASSES

SCRIPT = Path(__file__).with_name("throughput.py")
WIDE = {  # tiny networks that draw tiles of full size: what memory holds is tiles
    "sit": {**tinymodel.SIZES["sit"], "latent_size": 28, "patch_size": 14},
    "vae": {**tinymodel.SIZES["vae"], "unshuffle": 8, "channels": [16]},
    "encoder": {**tinymodel.SIZES["encoder"], "image_size": 224, "patch_size": 56},
}
TILE_BYTES = 224 * 224 * 3


@pytest.mark.slow
def test_the_benchmark_gives_every_figure(tmp_path: Path) -> None:
    model = tinymodel.make_tiny_model(tmp_path / "model")
    command = [
        sys.executable,
        SCRIPT,
        "--model",
        model,
        "--tiles",
        "24",
        "--repeats",
        "1",
        "--json",
        tmp_path / "f.json",
    ]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert max(map(len, ended.stdout.splitlines())) <= 80
    found = json.loads((tmp_path / "f.json").read_text())
    local, ray, memory, plan = found["local"], found["ray"], found["memory"], found["plan"]
    stages = {"condition", "sample", "decode", "screen", "encode", "commit", "other"}
    assert set(local["seconds"]) == set(local["share"]) == stages
    assert all(f"  {stage} " in ended.stdout for stage in stages)
    assert min(local["seconds"][stage] for stage in stages - {"other"}) > 0
    assert sum(local["share"].values()) == pytest.approx(1)
    assert (local["tiles"], local["network_calls"]) == (12, 12 * 2 * 19)  # Heun's 10 steps are 19 evaluations, guided
    assert local["tiles_per_second"] == pytest.approx(12 / local["wall"])
    assert (ray["tiles"], ray["workers"]) == (24, 2)
    assert ray["overhead"] == pytest.approx(ray["wall"] / ray["wall_of_local_pair"] - 1)
    assert ray["reached"] == (ray["overhead"] < ray["goal"] == 0.05)
    assert min(ray["start"], ray["stop"], ray["wall"]) > 0
    assert min(memory["local"], memory["ray_driver"], memory["ray_worker"]) > 50e6
    assert plan["1e9"]["peak"] - plan["1e3"]["peak"] == plan["peak_difference"] < 300_000_000
    assert plan["1e9"]["wall"] < 5


def test_the_loaders_benchmark_gives_every_figure(tmp_path: Path) -> None:
    command = [sys.executable, Path(SCRIPT).with_name("loader.py"), "--tiles", 40, "--workers", 1, "--repeats", 1]
    ended = subprocess.run(
        [*map(str, command), "--json", str(tmp_path / "f.json")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    assert min(found["tiles_per_second"].values()) > 0
    assert found["ratio"] == pytest.approx(found["tiles_per_second"]["ours"] / found["tiles_per_second"]["webdataset"])
    assert found["reached"] == (found["ratio"] >= found["goal"] == 1.0)
    assert "goal at least 1" in ended.stdout


def test_what_is_wrong_with_the_model_is_one_message(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model", str(tmp_path / "absent")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "neither a built-in model" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """A model of full-size tiles that draws hundreds of them a second."""
    monkeypatch.setattr(tinymodel, "SIZES", WIDE)
    model = tinymodel.make_tiny_model(tmp_path / "model")
    return Workshop(tmp_path, str(model), {"method": "ode", "solver": "euler", "steps": 1})


@pytest.mark.slow
def test_a_workers_memory_does_not_grow_with_the_shard(shop: Workshop) -> None:
    with Child() as small, Child() as large:
        found = side_by_side([small, large], [shop.spec(tiles, tiles, "webp", screen={}) for tiles in (200, 2000)])
    assert [ended["tiles"] for ended in found] == [200, 2000]
    held = 1800 * TILE_BYTES  # what a worker that keeps the decoded tiles of its shard needs on top: 271 MB
    assert found[1]["peak"] - found[0]["peak"] < 0.4 * held


def test_a_process_answers_for_its_own_memory_not_for_its_parents() -> None:
    ballast = np.ones(60_000_000)  # 480 MB, resident
    with Child() as child:
        child.send(peak=True)
        assert child.answer()["peak"] < ballast.nbytes / 2


@pytest.mark.slow
def test_memory_of_a_bank_grows_with_its_groups_not_with_its_rows(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    small, large = (measure(tmp_path / name, rows, 64) for name, rows in (("small", 20_000), ("large", 400_000)))
    more = 380_000 * 4 * 64  # bytes of the embeddings that only the large one has: 97 MB
    assert large["draw"]["peak"] - small["draw"]["peak"] < 0.25 * more
    assert large["index"]["peak"] < 500e6
    assert large["index"]["rows"] == 400_000


@pytest.mark.slow
def test_sampling_is_compared_with_both_baselines(tmp_path: Path) -> None:
    model = tinymodel.make_tiny_model(tmp_path / "model")
    script = SCRIPT.with_name("sampling.py")
    command = [sys.executable, script, "--model", model, "--steps", 4, "--batch", 4, "--repeats", 1, "--threads", 1]
    ended = subprocess.run(
        [*map(str, command), "--json", str(tmp_path / "f.json")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["calls_per_tile"] == 4 + 3  # guided from t = 0.75 on: 0.68, 0.36, 0.04
    rates = found["tiles_per_second"]
    assert found["ratio_over"] == {name: pytest.approx(rates["ours"] / rates[name]) for name in ("a", "b")}
    assert min(rates.values()) > 0
    assert found["share_of_matmul_rate"]["ours"] > 0
    assert "not measured" in ended.stdout or found["kind"] == "cuda"


@pytest.mark.slow
def test_what_tiles_are_worth_is_printed_resumed_and_not_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tinymodel, "SIZES", WIDE)
    model = tinymodel.make_tiny_model(tmp_path / "model")
    monkeypatch.setattr(utility, "NATURAL", dict(zip(CLASSES, (16, 12, 10, 8, 6, 6), strict=True)))
    monkeypatch.setattr(utility, "TEST_PATIENTS", 6)
    monkeypatch.setattr(utility, "BALANCED_PATIENTS", 5)
    monkeypatch.setattr(utility, "SAMPLER", {"solver": "ab2", "steps": 2})
    monkeypatch.setattr(utility, "SCREEN", {})
    monkeypatch.setattr(utility, "MECHANISMS", {name: utility.MECHANISMS[name] for name in ("none", "mix, k 5")})
    command = [
        "utility.py", "--seeds", "1", "--mechanism-seeds", "2", "--per-class", "6", "--model", str(model), "--no-cnn",
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    utility.main()
    said = capsys.readouterr().out
    assert "rare classes, probe in tiny-encoder: real + synthetic gains " in said
    assert "seed 1, mix, k 5, probe in texture/1: synthetic / real only " in said
    assert "mechanism none, probe in texture/1: synthetic / real only " in said
    began = (tmp_path / "out/rare-0/evaluation.json").stat().st_mtime_ns
    utility.main()
    assert capsys.readouterr().out == said
    assert (tmp_path / "out/rare-0/evaluation.json").stat().st_mtime_ns == began
    report = tmp_path / "out/rare-0/evaluation.json"
    figures = json.loads(report.read_text())
    report.write_text(
        json.dumps({**figures, "cnn": next(iter(figures["spaces"].values()))["utility"]})
    )  # as if it had learned
    monkeypatch.setattr(sys, "argv", [part for part in command if part != "--no-cnn"])
    utility.main()
    assert "rare classes, small CNN: real + synthetic gains " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--per-class", "7"])
    with pytest.raises(SystemExit, match="was made of another model or with other settings"):
        utility.main()
