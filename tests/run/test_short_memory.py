"""A batch that does not fit the device's memory: the unit is drawn again, whole, in smaller batches, and that is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from synthfactory.run import driver
from synthfactory.run.local import LocalPool
from synthfactory.run.prepare import prepare
from synthfactory.run.probe import largest_batch
from synthfactory.sample.engine import Engine
from synthfactory.spec.load import load_spec

MakeSpec = Callable[..., Path]


def _build(spec: Path) -> tuple[driver.BuildResult, list[str]]:
    said: list[str] = []
    return driver.build(prepare(load_spec(str(spec))), LocalPool, say=said.append), said


def _fits(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    begin = Engine.begin

    def limited(self: Engine, conditions: Any, keys: Any, *rest: Any, **options: Any) -> Any:
        if len(keys) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return begin(self, conditions, keys, *rest, **options)

    monkeypatch.setattr(Engine, "begin", limited)


def test_memory_that_is_short_halves_the_batch(
    spec_file: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fits(monkeypatch, 3)
    result, said = _build(spec_file(execution={"batch_size": 8, "threads": 1}))
    assert result.complete
    assert any("drawn in batches of 2 instead of 8" in text for text in said)
    sizes = {json.loads(path.read_text())["fingerprint"]["batch_size"] for path in tmp_path.glob("out/commits/*.json")}
    assert sizes == {2}


def test_strict_mixes_no_sizes(spec_file: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    _fits(monkeypatch, 3)
    result, said = _build(spec_file(execution={"batch_size": 8, "threads": 1, "strict": True}))
    assert not result.complete
    assert any("OutOfMemoryError" in text for text in said)


def test_the_batch_of_a_first_build_fills_the_device_but_for_a_reserve() -> None:
    def peak(rows: int) -> int:
        if rows > 64:
            raise torch.OutOfMemoryError
        return 100 + 10 * rows

    assert largest_batch(peak, 100 + 10 * 40) == 32
    assert largest_batch(peak, 10**9) == 64
    assert largest_batch(peak, 1) == 8


def test_a_probed_batch_is_locked_and_one_in_the_spec_is_not_probed(spec_file: MakeSpec, tmp_path: Path) -> None:
    asked: list[str] = []

    def probe(spec: Any) -> int:
        asked.append(spec.name)
        return 5

    def batch(number: int, **execution: Any) -> int:
        spec = spec_file(
            output={"path": f"{tmp_path}/{number}"},
            lineage=f"{tmp_path}/{number}-l",
            execution={"threads": 1, **execution},
        )
        for _ in range(2):
            driver.build(prepare(load_spec(str(spec))), LocalPool, say=lambda text: None, probe=probe)
        return int(yaml.safe_load((tmp_path / str(number) / "spec.lock.yaml").read_text())["execution"]["batch_size"])

    assert batch(0) == 5
    assert batch(1, batch_size=3) == 3
    assert asked == ["tiny"]
