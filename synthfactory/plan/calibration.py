"""`steps: auto`: the fewest steps that a model's own calibration found to be no worse than its reference. No torch.

A table belongs to one model by sha256 and holds for one guidance; another model's is never used. `synthfactory calibrate` writes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from synthfactory.shards.store import open_source
from synthfactory.spec.places import cache_folder
from synthfactory.spec.sampler import FrozenModel, Guidance, Sampler
from synthfactory.spec.schema import Spec

CALIBRATION = "calibration.json"
FORMAT = "synthfactory-calibration/1"
MAX_BYTES = 1 << 22
# What counts as no worse, every time by the 95 % interval's bad end:
MARGIN = 0.02  # class agreement and cosine less than this below the reference's
DISTANCE_MARGIN = 0.1  # kernel distance above the reference's by less than this share of it,
# or, where that is more, by less than this, of features that are standardised: a tenth of next to nothing can be shown of no setting. Two
# samples of real tiles of other patients, 1,320 each, lie up to 0.003 apart by chance (95 %, the built-in model's card). Chosen after
# revision 4's table had been seen, in which it lets ab2 at 10 steps through.
DISTANCE_FLOOR = 0.005
# Of events that were not seen once in n tiles as many as 3 in n may be there (95 %): a setting that kept every tile's class is below by up
# to that, of which its bootstrap, of no width, knows nothing.
UNSEEN = 3
MIN_TILES = 160  # below, a bootstrap's intervals are too narrow to go by, and 3 in n is MARGIN

Interval = tuple[float, float]


class Row(FrozenModel):
    """One setting: class agreement and cosine to the condition (means over tiles), kernel distance, and what each is off the reference
    by (mean and 95 % interval, paired by condition and noise).
    """

    sampler: Sampler
    calls_per_tile: Annotated[int, Field(ge=1)]
    tiles: Annotated[int, Field(ge=1)]
    class_agreement: float
    class_agreement_95: Interval
    cosine: float
    cosine_95: Interval
    kernel_distance: float
    kernel_distance_95: Interval
    class_agreement_off: float = 0.0
    class_agreement_off_95: Interval = (0.0, 0.0)
    cosine_off: float = 0.0
    cosine_off_95: Interval = (0.0, 0.0)
    kernel_distance_off: float = 0.0
    kernel_distance_off_95: Interval = (0.0, 0.0)

    @field_validator("sampler")
    @classmethod
    def _numbered(cls, sampler: Sampler) -> Sampler:
        if sampler.steps == "auto":
            raise ValueError("a row of a calibration has a number of steps")
        return sampler


class Table(FrozenModel):
    """All settings at one guidance, beside the reference."""

    guidance: Guidance
    reference: Row
    rows: list[Row]

    def no_worse(self, row: Row) -> bool:
        """Whether a row is surely (95 %) as good as the reference but for the margins above. The distance's margin is a share of the
        upper end of the reference's own interval, how far this model's tiles are from real ones at best, or the floor.
        """
        distance = max(DISTANCE_FLOOR, DISTANCE_MARGIN * self.reference.kernel_distance_95[1])
        agreement = min(row.class_agreement_off_95[0], row.class_agreement_off - UNSEEN / row.tiles)
        return (
            row.tiles >= MIN_TILES
            and agreement > -MARGIN
            and row.cosine_off_95[0] > -MARGIN
            and row.kernel_distance_off_95[1] < distance
        )


class Calibration(FrozenModel):
    """A model's tables."""

    format: str = FORMAT
    model_sha256: str
    encoder_sha256: str
    command: str
    tables: list[Table]


def places_of(model_sha256: str, folder: str | None) -> list[str]:
    """Where a model's calibration may lie: in its folder, then in this machine's cache."""
    beside = [os.path.join(folder, CALIBRATION)] if folder else []
    return [*beside, str(cache_folder() / "calibration" / f"{model_sha256}.json")]


def read_calibration(model_sha256: str, folder: str | None) -> Calibration | None:
    """The tables of all readable ones that are this model's, the cache's before those beside the model at the same guidance; None where
    there is none.
    """
    found: Calibration | None = None
    for place in places_of(model_sha256, folder):
        one = calibration_at(place)
        if one is not None and one.model_sha256 == model_sha256:
            found = with_table(found, one)
    return found


def calibration_at(place: str) -> Calibration | None:
    """What stands in a file or behind a URL; None where it is no calibration."""
    try:
        with open_source(place) as handle:
            found = Calibration.model_validate_json(handle.read(MAX_BYTES))
    except (OSError, ValidationError, ValueError, RecursionError):
        return None
    return found if found.format == FORMAT else None


def encoded(calibration: Calibration) -> bytes:
    """As it is stored."""
    return json.dumps(calibration.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n"


def with_table(before: Calibration | None, after: Calibration) -> Calibration:
    """`after` beside the tables of `before` at other guidances."""
    if before is None or before.model_sha256 != after.model_sha256:
        return after
    new = [table.guidance for table in after.tables]
    kept = [table for table in before.tables if table.guidance not in new]
    return after.model_copy(update={"tables": [*kept, *after.tables]})


def resolved(spec: Spec, model_sha256: str, folder: str | None, lock: Mapping[str, Any] | None = None) -> Spec:
    """The spec with `steps: auto` replaced by numbers: of the `lock` of the set that is built on, else of the model's calibration.

    InputError at the field where neither answers it.
    """
    samplers = {name: spec.sampler_for(name) for name in spec.classes}
    if any(item.sampler is None for item in spec.classes.values()):
        samplers[""] = spec.sampler
    if spec.sampler.steps != "auto" and all(sampler.steps != "auto" for sampler in samplers.values()):
        return spec
    found = read_calibration(model_sha256, folder)
    chosen = {
        name: _locked_steps(lock, name, sampler) or _steps(spec, name, sampler, found)
        for name, sampler in samplers.items()
        if sampler.steps == "auto"
    }
    classes = {}
    for name, item in spec.classes.items():
        if name in chosen and item.sampler is not None:
            sampler = item.sampler.model_copy(update={"steps": chosen[name]})
            item = item.model_copy(update={"sampler": sampler})
        classes[name] = item
    base = spec.sampler
    if base.steps == "auto":
        number = chosen.get("") or _locked_steps(lock, "", base)
        if number is None:  # every class has a sampler of its own: nothing is drawn by it, but the lock needs a number
            others = [chosen.get(name) or sampler.num_steps for name, sampler in samplers.items()]
            number = _calibrated(base, found) or max(2, *others)
        base = base.model_copy(update={"steps": number})
    return spec.model_copy(update={"sampler": base, "classes": classes})


def _locked_steps(lock: Mapping[str, Any] | None, name: str, sampler: Sampler) -> int | None:
    """What the set was begun with, where all but the steps is as it was: it stays so where this machine has no calibration."""
    if lock is None:
        return None
    recipe = lock["recipe"]
    known = Sampler.model_validate(recipe["class_samplers"].get(name, recipe["sampler"]))
    same = known.model_copy(update={"steps": "auto"}) == sampler.model_copy(update={"steps": "auto"})
    return known.num_steps if same and known.steps != "auto" else None


def _steps(spec: Spec, name: str, sampler: Sampler, found: Calibration | None) -> int:
    own = name and spec.classes[name].sampler is not None
    path = f"classes.{name}.sampler" if own else "sampler"
    number = _calibrated(sampler, found)
    if number is not None:
        return number
    rows = _rows(sampler, found)
    guidance = sampler.guidance
    setting = f"{sampler.solver} at guidance {guidance.scale:g} ({guidance.low:g} to {guidance.high:g})"
    others = ", ".join(_others(sampler, found))
    advice = f"write a number of steps{f', or take a solver that has an answer: {others}' if others else ''}"
    if rows:
        tried = ", ".join(str(row.sampler.steps) for _, row in rows)
        tiles = f"{rows[0][1].tiles:,} tiles"
        why = (
            f"of {setting}, none of the steps that were tried ({tried}) was surely as good as the reference, on {tiles}"
        )
    else:
        why = f"{spec.model.name} has no calibration of {setting}"
        advice = f"run `synthfactory calibrate`, {'' if others else 'or '}{advice}"
    raise spec.error(f"{path}.steps", f"auto: {why}; {advice}")


def _others(sampler: Sampler, found: Calibration | None) -> list[str]:
    """Solvers that `auto` has an answer for at this guidance, the cheapest first, as a sentence names them."""
    tables = [] if found is None else [table for table in found.tables if table.guidance == sampler.guidance]
    good = [row for table in tables for row in table.rows if table.no_worse(row)]
    cheapest: dict[str, Row] = {}
    for row in sorted(good, key=lambda row: (row.calls_per_tile, row.sampler.solver)):
        cheapest.setdefault(row.sampler.solver, row)
    return [
        f"{solver} ({'' if row.sampler.method == sampler.method else f'method {row.sampler.method}, '}{row.calls_per_tile} calls a tile)"
        for solver, row in cheapest.items()
    ]


def _rows(sampler: Sampler, found: Calibration | None) -> list[tuple[Table, Row]]:
    tables = [] if found is None else [table for table in found.tables if table.guidance == sampler.guidance]
    return [(table, row) for table in tables for row in table.rows if _alike(row.sampler, sampler)]


def _calibrated(sampler: Sampler, found: Calibration | None) -> int | None:
    good = [row for table, row in _rows(sampler, found) if table.no_worse(row)]
    return min(good, key=lambda row: row.calls_per_tile).sampler.num_steps if good else None


def _alike(one: Sampler, other: Sampler) -> bool:
    return (one.method, one.solver) == (other.method, other.solver)


def summary(table: Table) -> list[Mapping[str, str]]:
    """The table's rows in words, the reference first, then by calls."""
    rows = [table.reference, *sorted(table.rows, key=lambda row: (row.calls_per_tile, row.sampler.solver))]
    return [
        {
            "solver": row.sampler.solver,
            "steps": str(row.sampler.steps),
            "calls": f"{row.calls_per_tile:,}",
            "class": f"{row.class_agreement:.3f}",
            "cosine": f"{row.cosine:.3f}",
            "distance": f"{row.kernel_distance:.3f}",
            "no worse": "reference" if row is table.reference else "yes" if table.no_worse(row) else "no",
        }
        for row in rows
    ]
