"""Formats that a CPU has no units for are said where a build starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from running import run
from tinymodel import make_bank_file, make_tiny_model

from synthfactory.model.formats import slow_format


@pytest.mark.parametrize(
    ("capability", "dtype", "device", "slow"),
    [
        ("AVX2", "bfloat16", "cpu", True),
        ("DEFAULT", "float16", "cpu", True),
        ("AVX2", "float32", "cpu", False),
        ("AVX2", "bfloat16", "cuda", False),
        ("AVX512", "bfloat16", "cpu", False),
    ],
)
def test_only_an_old_cpu_is_slow(
    monkeypatch: pytest.MonkeyPatch, capability: str, dtype: str, device: str, slow: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    found = slow_format(dtype, torch.device(device))
    assert (found is not None) == slow
    if found:
        assert capability in found and dtype in found


def test_a_local_build_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model(tmp_path / "model")
    bank = make_bank_file(tmp_path / "bank.parquet", model, classes={"one": 3})
    spec = {
        "name": "slow", "model": str(model), "classes": {"one": 2}, "embeddings": {"bank": str(bank)}, "seed": 1,
        "sampler": {"steps": 1}, "output": {"path": str(tmp_path / "out")}, "lineage": str(tmp_path / "lineage"),
        "execution": {"dtype": "bfloat16"},
    }  # fmt: skip
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    built = run("build", path, "--local")
    assert built.code == 0, built.err
    assert "only emulates bfloat16, many times slower than float32" in built.err + built.out
    checked = run("doctor", path, "--no-ray")
    assert "format" in checked.out and "execution.dtype: this CPU (AVX2) only emulates bfloat16" in checked.out
