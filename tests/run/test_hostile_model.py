"""Model folders that come from anyone: one clear refusal before anything is written, whatever stands in them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_checks import check_refusal
from running import run
from safetensors.torch import load_file, save_file
from tinymodel import make_bank_file

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    shutil.copytree(tiny / "model", tmp_path / "model")
    return tmp_path / "model"


def edit(model: Path, change: Change) -> None:
    values = json.loads((model / "config.json").read_text())
    change(values)
    (model / "config.json").write_text(json.dumps(values))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


CONFIGS: dict[str, tuple[Change, str]] = {
    "endless id": (lambda c: c.update(id="x" * 501), "'id' must be 1 to 500 printable characters"),
    "id that colours": (lambda c: c.update(id="x\x1b[31mRED"), "not 'x\\x1b[31mRED'"),
    "lone surrogate": (lambda c: c.update(id="a\ud800b"), "'id' must be 1 to 500 printable characters"),
    "revision of nothing": (lambda c: c.update(revision=""), "'revision' must be 1 to 500"),
    "encoder that colours": (lambda c: c["encoder"].update(id="\x1b[31m"), "'encoder.id' must be 1 to 500"),
    "infinite mpp": (lambda c: c.update(resolution_mpp=float("inf")), "'resolution_mpp' must be micrometres"),
    "mpp of no number": (lambda c: c.update(resolution_mpp=float("nan")), "'resolution_mpp' must be micrometres"),
    "negative mpp": (lambda c: c.update(resolution_mpp=-1.0), "'resolution_mpp' must be micrometres"),
    "tiles of another size": (lambda c: c.update(tile_size_px=5), "'tile_size_px' is 5, but sit.latent_size and vae make"),
    "true pixels": (lambda c: c.update(tile_size_px=True), "'tile_size_px' is missing or no int"),
    "endless name of a term": (lambda c: c.update(licence={"k" * 501: 1}), "'licence' has an entry whose name"),
    "terms that colour": (lambda c: c.update(licence={"name": "\x1b[31m"}), "'licence.name' holds text"),
    "terms nested deep": (lambda c: c.update(licence={"k": nested(300)}), "is nested too deep"),
    "terms of no number": (lambda c: c.update(licence={"k": float("nan")}), "'licence.k' is no finite number"),
    "endless width": (lambda c: c["sit"].update(condition_width=10**400), "'sit.condition_width' is too large"),
    "true width": (lambda c: c["sit"].update(condition_width=True), "'sit.condition_width' is missing"),
    "too deep": (lambda c: c["sit"].update(depth=10**6), "'sit.depth' is too large; at most 1,000"),
    "too wide": (lambda c: c["sit"].update(width=4 * 10**9, heads=1), "'sit.width' is too large; at most 65,536"),
    "latents too large": (lambda c: c["sit"].update(latent_size=2 * 10**6), "'sit.latent_size' is too large"),
    "tiles too large": (lambda c: (c["sit"].update(latent_size=10**4), c.update(tile_size_px=80_000)), "at most 4096"),
    "too many levels": (lambda c: c["vae"].update(channels=[16] * 60), "'vae.channels' must have 1 to 8"),
    "channels of words": (lambda c: c["vae"].update(channels="16"), "'vae.channels' must be"),
    "digests of words": (lambda c: c["files"].update({"sit.safetensors": "\x1b[31m"}), "each file's sha256"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_config_that_no_set_can_be_begun_with(
    model: Path, tmp_path: Path, spec_file: Callable[..., Path], name: str
) -> None:
    change, message = CONFIGS[name]
    edit(model, change)
    spec = spec_file(model=str(model))
    for command in (["plan", spec], ["build", spec, "--local"]):
        ended = run(*command)
        check_refusal(ended, message)
        assert f"model: {model}/config.json: " in ended.err
        assert len(ended.err) < 700
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "lineage").exists()


@pytest.mark.parametrize(
    "seconds", ["1" + "0" * 400, "9" * 5000, "NaN", "1e999", "-Infinity", "1e308", "true", "-1", "0", '"x"', "5e-324", "[1]"]
)  # fmt: skip
def test_stated_speed_that_is_no_measurement_is_ignored(
    model: Path, spec_file: Callable[..., Path], seconds: str
) -> None:
    (model / "figures.json").write_text(f'{{"timing": {{"seconds_per_call": {seconds}}}}}')
    ended = run("plan", spec_file(model=str(model)))
    assert (ended.code, ended.err) == (0, "")
    assert "unknown: no speed is stated" in ended.out


def spoil(model: Path, part: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes tensors of a part under a hash that is right."""
    path = model / f"{part}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    edit(model, lambda c: c["files"].update({path.name: hashlib.sha256(path.read_bytes()).hexdigest()}))


@pytest.mark.parametrize("part", ["sit", "vae", "encoder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(
    model: Path, tmp_path: Path, spec_file: Callable[..., Path], part: str, value: float
) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors[max(name for name in tensors if tensors[name].numel())].view(-1)[-1] = value

    spoil(model, part, change)
    bank = make_bank_file(tmp_path / "bank.parquet", model)
    spec = spec_file(model=str(model), embeddings={"bank": str(bank)})
    check_refusal(run("build", spec, "--local"), "holds numbers that are not finite")
    assert not (tmp_path / "out").exists()


def test_tensor_whose_name_would_act_on_a_terminal(model: Path, spec_file: Callable[..., Path]) -> None:
    spoil(model, "sit", lambda tensors: tensors.update({"\x1b[31mZ": tensors["final_layer.linear.bias"].clone()}))
    check_refusal(run("build", spec_file(model=str(model)), "--local"), "\\x1b[31mZ has ")


@pytest.mark.parametrize("field", ["model", "bank", "out"])
def test_home_of_a_user_that_does_not_exist(spec_file: Callable[..., Path], tmp_path: Path, field: str) -> None:
    place = "~nosuchuser-7/there"
    changes: dict[str, Any] = {
        "model": {"model": place},
        "bank": {"embeddings": {"bank": f"{place}.parquet"}},
        "out": {"output": {"path": place, "shard_size": 8}},
    }[field]
    ended = run("plan", spec_file(**changes))
    assert "Traceback" not in ended.err
    assert ended.code == (0 if field == "out" else 2)


def test_weights_that_are_whole_numbers_are_no_weights(
    model: Path, spec_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = model / "sit.safetensors"
    save_file({name: value.long() for name, value in load_file(path).items()}, path)
    edit(model, lambda c: c["files"].update({"sit.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()}))
    ended = run("build", spec_file(model=str(model)), "--local")
    assert ended.code == 2
    assert "holds whole numbers, and weights are floats" in ended.err
    assert "Traceback" not in ended.err
