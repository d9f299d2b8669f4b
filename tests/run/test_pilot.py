"""The pilot: a look before the budget goes. And progress, as it is said without a terminal."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from running import contents, run

from synthfactory.run.pilot import ClassPilot
from synthfactory.run.progress import LINE_EVERY_SEC, Progress, counting, duration

MakeSpec = Callable[..., Path]


def test_a_pilot_shows_tiles_and_costs_and_touches_no_output(spec_file: MakeSpec, tmp_path: Path) -> None:
    ended = run("pilot", spec_file(), "--tiles", 3)
    assert ended.code == 0, ended.err
    assert [line.split() for line in ended.out.splitlines()[1:3]] == [["alpha", "3", "3", "-"], ["beta", "3", "3", "-"]]
    assert "the whole set: about 330 network calls" in ended.out  # 33 tiles, 10 calls each
    assert "on 1 worker like this one" in ended.out
    assert not (tmp_path / "out").exists()
    assert sorted(contents(tmp_path / "lineage")) == ["pilot/contact-sheet.png", "pilot/pilot.json"]
    sheet = Image.open(io.BytesIO(contents(tmp_path / "lineage")["pilot/contact-sheet.png"]))
    assert sheet.width > 3 * 112
    assert sheet.height > 2 * 112


def test_rejects_raise_the_estimate(spec_file: MakeSpec, tmp_path: Path) -> None:
    screen = {"blur": {"min_sharpness": 0.336}}  # about the median of the tiny model's tiles
    ended = run("pilot", spec_file(screen=screen, budget={"max_attempts": 20, "network_calls": 335}), "--tiles", 8)
    assert ended.code == 0, ended.err
    figures = json.loads(contents(tmp_path / "lineage")["pilot/pilot.json"])
    draws = {name: entry["drawn"] / 8 for name, entry in figures["classes"].items()}
    assert max(draws.values()) > 1.0
    expected = 10 * (20 * draws["alpha"] + 13 * draws["beta"])
    assert figures["network_calls_expected"] == pytest.approx(expected, abs=1)
    assert "blurred" in ended.out
    assert f"needs {expected - 335:,.0f} more" in ended.out


def test_conditions_that_fail_go_on_failing_in_the_forecast_as_they_did_in_the_pilot() -> None:
    """Draws of one condition hang together: a pilot that left two of 24 places empty foresees one in twelve, not (11/33)^4."""
    assert ClassPilot(drawn=33, kept=22, slots=24).expected(4) == (33 / 24, 2 / 24)
    draws, missed = ClassPilot(drawn=30, kept=24, slots=24).expected(4)
    assert (draws, round(missed, 4)) == (1.25, round(0.2**4, 4))
    assert ClassPilot(drawn=24, kept=24, slots=24).expected(4) == (1.0, 0.0)
    assert ClassPilot(drawn=96, kept=0, slots=24).expected(4) == (4.0, 1.0)


def test_a_class_that_keeps_nothing_is_warned_about(spec_file: MakeSpec) -> None:
    ended = run("pilot", spec_file(screen={"blur": {"min_sharpness": 9.0}}, budget={"max_attempts": 2}), "--tiles", 2)
    assert ended.code == 0
    assert "alpha: no candidate was kept" in ended.out
    calls = int(re.search(r"about ([0-9,]+) network calls", ended.out)[1].replace(",", ""))
    assert 330 < calls <= 660  # never more than budget.max_attempts draws a tile: what `plan` calls "at most"


def test_what_is_made_already_is_not_counted_again(spec_file: MakeSpec) -> None:
    spec = spec_file()
    assert run("build", spec, "--local").code == 0
    ended = run("pilot", spec_file(classes={"alpha": 21, "beta": 13}), "--tiles", 2)
    assert "what is missing of the set: about 10 network calls" in ended.out
    nothing = run("pilot", spec_file(), "--tiles", 2)
    assert nothing.code == 0
    assert "nothing is left to draw" in nothing.out


def test_few_attempts_are_forecast_to_leave_tiles_empty(spec_file: MakeSpec) -> None:
    screen = {"blur": {"min_sharpness": 0.336}}
    ended = run("pilot", spec_file(screen=screen, budget={"max_attempts": 1}), "--tiles", 8)
    assert ended.code == 0
    assert "would find no candidate in 1 attempts" in " ".join(ended.out.split())


def test_a_class_of_more_attempts_is_forecast_by_them(spec_file: MakeSpec, tmp_path: Path) -> None:
    classes = {"alpha": 20, "beta": {"count": 13, "budget": {"max_attempts": 7}}}
    spec = spec_file(screen={"blur": {"min_sharpness": 9.0}}, budget={"max_attempts": 2}, classes=classes)
    ended = run("pilot", spec, "--tiles", 2)
    figures = json.loads(contents(tmp_path / "lineage")["pilot/pilot.json"])
    drawn = {name: entry["drawn"] for name, entry in figures["classes"].items()}
    assert drawn == {"alpha": 2 * 2, "beta": 2 * 7}
    assert figures["network_calls_expected"] == 10 * (20 * 2 + 13 * 7)
    assert ended.code == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    said: list[str] = []
    clock = Clock()
    progress = Progress(100, say=said.append, clock=clock)
    for _ in range(10):
        clock.now += LINE_EVERY_SEC / 5
        progress.tick(4, 1)
    progress.close()
    assert said == [  # after 12, 42 and 60 seconds
        "6/100 tiles, 0.50 tiles/s, about 3 min left, 2 of 8 candidates rejected",
        "21/100 tiles, 0.50 tiles/s, about 3 min left, 7 of 28 candidates rejected",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (89, "89 s"), (120, "2 min"), (9000, "2.5 h"), (400_000, "4.6 days")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_long_checks_say_how_far_they_are() -> None:
    said, now = list[str](), [0.0]
    tick = counting(1000, "shards checked", said.append, lambda: now[0])
    for _ in range(500):
        now[0] += 0.125
        tick()
    assert said == [
        "shards checked: 80 of 1,000, about 2 min left",
        "shards checked: 320 of 1,000, about 85 s left",
    ]
