"""Figures of several models side by side, as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Figures = Mapping[str, Any]
NAME, WIDE = 34, 18  # columns of a row's name, and of each model


def table(models: Mapping[str, Figures]) -> Iterator[str]:
    """A line for each figure, a column for each model; where a model has one, its 95 % interval stands below."""
    shown = [Path(name).name for name in models]
    if len(set(shown)) < len(shown):  # folders of one name: the ends of their paths tell them apart
        shown = list(models)
    yield f"{'':<{NAME}}" + "".join(f"{name[1 - WIDE :]:>{WIDE}}" for name in shown)
    for label, value, interval in ROWS:
        yield f"{label:<{NAME}}" + "".join(f"{_number(value(found)):>{WIDE}}" for found in models.values())
        if interval is not None:
            between = [interval(found) for found in models.values()]
            yield f"{'':<{NAME}}" + "".join(f"{f'{low:.3f} to {high:.3f}':>{WIDE}}" for low, high in between)
    structures = [[(row["class"], row["measure"]) for row in found["structure"]] for found in models.values()]
    yield ""
    yield "structures: mean of drawn tiles (of real tiles)"
    for place, (name, measure) in enumerate(structures[0]):
        if measure in ("nuclei", "nuclear_area_um2"):
            continue
        rows = [found["structure"][place] for found in models.values()]
        cells = [f"{row['drawn']:.2f} ({row['real']:.2f})" for row in rows]
        yield f"{f'{name}, {measure}'.replace('_', ' '):<{NAME}}" + "".join(f"{cell:>{WIDE}}" for cell in cells)


def _number(value: float) -> str:
    return f"{value:.3f}"


def _at(*path: str) -> Callable[[Figures], Any]:
    def found(figures: Figures) -> Any:
        value: Any = figures
        for name in path:
            value = value[name]
        return value

    return found


ROWS: tuple[tuple[str, Callable[[Figures], Any], Callable[[Figures], Any] | None], ...] = (
    ("class agreement / judge on reals", _at("agreement", "ratio"), _at("agreement", "ratio_95")),
    ("probe drawn / real, encoder space", _at("probes", "encoder", "ratio"), _at("probes", "encoder", "ratio_95")),
    ("probe drawn / real, judge space", _at("probes", "judge", "ratio"), _at("probes", "judge", "ratio_95")),
    (
        "kernel distance, encoder space",
        _at("distances", "encoder", "kernel_drawn"),
        _at("distances", "encoder", "kernel_drawn_95"),
    ),
    ("  of real tiles", _at("distances", "encoder", "kernel_real"), None),
    (
        "kernel distance, judge space",
        _at("distances", "judge", "kernel_drawn"),
        _at("distances", "judge", "kernel_drawn_95"),
    ),
    ("  of real tiles", _at("distances", "judge", "kernel_real"), None),
    ("spread of a condition / a patient", _at("diversity", "ratio"), _at("diversity", "ratio_95")),
    ("autoencoder, PSNR (dB)", _at("agreement", "vae_psnr_db"), None),
    ("tiles/s", _at("timing", "tiles_per_second"), None),
)
