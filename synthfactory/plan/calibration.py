"""`steps: auto`: the fewest steps that a model's own calibration found to be no worse than its reference. No torch.

A table belongs to one model by sha256 and holds for one guidance; another model's is never used. `synthfactory calibrate` writes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, ValidationError

from synthfactory.shards.store import open_source
from synthfactory.spec.places import cache_folder
from synthfactory.spec.sampler import FrozenModel, Guidance, Sampler
from synthfactory.spec.schema import Spec

CALIBRATION = "calibration.json"
FORMAT = "synthfactory-calibration/1"
MAX_BYTES = 1 << 22
MARGIN = 0.02  # of class agreement and of cosine agreement: what counts as no worse

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

    @property
    def no_worse(self) -> bool:
        """Both agreements are surely less than MARGIN below the reference's, and the kernel distance is not surely larger."""
        return (
            self.class_agreement_off_95[0] > -MARGIN
            and self.cosine_off_95[0] > -MARGIN
            and self.kernel_distance_off_95[0] <= 0.0
        )


class Table(FrozenModel):
    """All settings at one guidance, beside the reference."""

    guidance: Guidance
    reference: Row
    rows: list[Row]


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
    """The first readable one that is this model's; None where there is none."""
    for place in places_of(model_sha256, folder):
        try:
            with open_source(place) as handle:
                found = Calibration.model_validate_json(handle.read(MAX_BYTES))
        except (OSError, ValidationError, ValueError, RecursionError):
            continue
        if found.model_sha256 == model_sha256 and found.format == FORMAT:
            return found
    return None


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


def resolved(spec: Spec, model_sha256: str, folder: str | None) -> Spec:
    """The spec with `steps: auto` replaced by numbers. InputError at the field where no calibration of this model answers it."""
    samplers: dict[str, Sampler] = {"": spec.sampler, **{name: spec.sampler_for(name) for name in spec.classes}}
    if all(sampler.steps != "auto" for sampler in samplers.values()):
        return spec
    found = read_calibration(model_sha256, folder)
    chosen = {name: _steps(spec, name, sampler, found) for name, sampler in samplers.items() if sampler.steps == "auto"}
    classes = {}
    for name, item in spec.classes.items():
        if name in chosen and item.sampler is not None:
            sampler = item.sampler.model_copy(update={"steps": chosen[name]})
            item = item.model_copy(update={"sampler": sampler})
        classes[name] = item
    base = spec.sampler.model_copy(update={"steps": chosen[""]}) if "" in chosen else spec.sampler
    return spec.model_copy(update={"sampler": base, "classes": classes})


def _steps(spec: Spec, name: str, sampler: Sampler, found: Calibration | None) -> int:
    own = name and spec.classes[name].sampler is not None
    path = f"classes.{name}.sampler" if own else "sampler"
    tables = [] if found is None else [table for table in found.tables if table.guidance == sampler.guidance]
    rows = [row for table in tables for row in table.rows if _alike(row.sampler, sampler)]
    good = sorted((row for row in rows if row.no_worse), key=lambda row: row.calls_per_tile)
    if good:
        return good[0].sampler.num_steps
    guidance = sampler.guidance
    setting = f"{sampler.solver} at guidance {guidance.scale:g} ({guidance.low:g} to {guidance.high:g})"
    if rows:
        why = f"none of the steps that were tried ({', '.join(str(row.sampler.steps) for row in rows)}) was as good as the reference"
    else:
        why = f"{spec.model.name} has no calibration of {setting}; run `synthfactory calibrate`"
    raise spec.error(f"{path}.steps", f"auto: {why}, or write a number of steps")


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
            "no worse": "reference" if row is table.reference else "yes" if row.no_worse else "no",
        }
        for row in rows
    ]
