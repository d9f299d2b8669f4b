"""The table of several models' figures."""

from __future__ import annotations

from typing import Any

import pytest

from synthfactory.spec.errors import InputError
from train.compare import table

SPACE = {
    "ratio": 1.0,
    "ratio_95": [0.9, 1.1],
    "kernel_drawn": -0.001,
    "kernel_drawn_95": [-0.012, -0.001],
    "kernel_real": 0.0,
}
FIGURES: dict[str, Any] = {
    "agreement": {**SPACE, "vae_psnr_db": 26.0}, "diversity": SPACE, "timing": {"tiles_per_second": 1.0},
    "probes": {"encoder": SPACE, "judge": SPACE}, "distances": {"encoder": SPACE, "judge": SPACE},
    "structure": [{"class": "gland", "measure": "lumina", "real": 2.0, "drawn": 1.0}],
}  # fmt: skip


def test_models_of_one_name_are_told_apart_and_signs_are_readable() -> None:
    lines = list(table({"out/a/model": FIGURES, "out/b/model": FIGURES}))
    assert lines[0].split() == ["out/a/model", "out/b/model"]
    assert next(table({"phantom": FIGURES, "out/b/model": FIGURES})).split() == ["phantom", "model"]
    assert any(line.endswith("  -0.012 to -0.001  -0.012 to -0.001") for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scale", "nan"], "--scale: "),
        (["--scale", "inf"], "--scale: "),
        (["--solver", "euler_maruyama", "--steps", "1"], "--"),
    ],
)
def test_a_sampler_that_cannot_be_is_one_message(words: list[str], said: str) -> None:
    from train.cli import _sampler

    given = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    with pytest.raises(InputError, match=said):
        _sampler(given.get("solver", "heun"), int(given.get("steps", 10)), float(given.get("scale", 1.5)))  # type: ignore[arg-type]
