"""Builds of which little or nothing passes the screens: what ends, what goes on, and what is said."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import run

from synthfactory.run import drawing
from synthfactory.screen import Verdict

MakeSpec = Callable[..., Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_first_build_of_which_nothing_passes_ends_before_it_commits(spec_file: MakeSpec, out: Path) -> None:
    unit = {"screen": {"blur": {"min_sharpness": 9.0}}, "budget": {"max_attempts": 1}}
    output = {"path": str(out), "shard_size": 200}
    spec = spec_file(**unit, classes={"alpha": 120, "beta": 80}, output=output)
    ended = run("build", spec, "--local")
    assert (ended.code, "Traceback" in ended.err) == (2, False)
    assert "screen: none of the first 19" in ended.err  # 120 of alpha and 70 of beta, and what was left of its batch
    assert "(blurred 19" in ended.err
    assert not (out / "commits").exists() or not list((out / "commits").iterdir())
    assert run("build", spec, "--local").code == 2  # and again


def passing(monkeypatch: pytest.MonkeyPatch, kept: Callable[[int], bool]) -> None:
    """Screens that drop a candidate by its number in the build, whatever it shows."""
    seen, real = Counter[str](), drawing.screen_tiles

    def screened(images: np.ndarray, *arguments: Any) -> list[Verdict]:
        numbers = range(seen["all"], seen["all"] + len(images))
        seen["all"] += len(images)
        return [
            verdict if kept(number) else replace(verdict, keep=False, reasons=("blurred",))
            for number, verdict in zip(numbers, real(images, *arguments), strict=True)
        ]

    monkeypatch.setattr(drawing, "screen_tiles", screened)


def test_a_shard_of_which_nothing_passes_is_a_shortfall_once_another_is_committed(
    spec_file: MakeSpec, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing(monkeypatch, lambda candidate: candidate < 90)
    output = {"path": str(out), "shard_size": 100}
    ended = run("build", spec_file(budget={"max_attempts": 1}, classes={"alpha": 200}, output=output), "--local")
    assert ended.code == 3, ended.err
    assert "90 of 200 tiles" in ended.out
    assert len(list((out / "commits").iterdir())) == 2


def test_a_class_that_is_drawn_first_does_not_end_a_build_of_others(
    spec_file: MakeSpec, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches go by sampler: all of alpha's come before any of beta's."""
    passing(monkeypatch, lambda candidate: candidate >= 150)
    classes = {"alpha": {"count": 150, "sampler": {"steps": 2}}, "beta": 40}
    output = {"path": str(out), "shard_size": 200}
    ended = run("build", spec_file(budget={"max_attempts": 1}, classes=classes, output=output), "--local")
    assert ended.code == 3, ended.err
    assert "  alpha: 150 of 150 drawn now" in ended.out


def test_a_class_of_which_most_tiles_stay_empty_is_named_while_the_build_runs(spec_file: MakeSpec, out: Path) -> None:
    first = spec_file(screen={"blur": {"min_sharpness": 9.0}}, budget={"max_attempts": 1}, classes={"alpha": 9})
    assert run("build", first, "--local").code == 3
    more = spec_file(
        screen={"blur": {"min_sharpness": 9.0}}, budget={"max_attempts": 1}, classes={"alpha": 150, "beta": 30}
    )
    ended = run("build", more, "--local")
    assert ended.code == 3, ended.err  # something is committed: what cannot be filled is a shortfall, as it always was
    assert ended.err.count("tiles found no candidate that passes") == 1, ended.err  # beta has too few to tell
    assert re.search(r"alpha: 1\d\d of its first 1\d\d tiles", ended.err)
    assert "  alpha: 141 of 141 drawn now" in ended.out
