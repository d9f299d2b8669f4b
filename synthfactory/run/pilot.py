"""A look before the budget goes: a few tiles of each class through the whole path, what is rejected, how fast, what it will cost.

The pilot is a small build of the same spec into a temporary folder, by one worker in this process. Its contact sheet shows tiles
drawn from the bank's patients, so it is kept in LINEAGE and published nowhere. Under dp it makes, and charges, the release that the
build takes.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq

from synthfactory.plan.cost import calls_per_tile
from synthfactory.report.contact import contact_sheet
from synthfactory.report.status import first_tiles
from synthfactory.run.belonging import check_agrees
from synthfactory.run.budget import spent_before
from synthfactory.run.driver import build
from synthfactory.run.keys import guard
from synthfactory.run.local import LocalPool
from synthfactory.run.prepare import Prepared, check_writable, read_standing
from synthfactory.run.progress import duration
from synthfactory.run.result import BuildResult
from synthfactory.shards.store import Store, open_store
from synthfactory.spec.errors import InputError

SHEET, FIGURES = "pilot/contact-sheet.png", "pilot/pilot.json"


@dataclass
class ClassPilot:
    """Candidates of a class: drawn, kept, and why the others were dropped."""

    drawn: int = 0
    kept: int = 0  # each fills a tile's place
    slots: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def expected(self, max_attempts: int) -> tuple[float, float]:
        """(draws per tile asked for, share of tiles that no attempt gives), as the pilot's own tiles had it with the same attempts.

        A condition that fails once fails more often than others do, so that draws are no independent trials; where no tile stayed empty,
        the share is what independent draws would give, which is too little if anything.
        """
        chance = min(1.0, max(self.kept, 0.5) / max(self.drawn, 1))
        empty = (self.slots - self.kept) / max(self.slots, 1)
        return self.drawn / max(self.slots, 1), empty or (1 - chance) ** max_attempts


def pilot(prepared: Prepared, *, per_class: int, workers: int, say: Callable[[str], None]) -> Iterator[str]:
    """Runs the pilot; yields what to print. Writes only LINEAGE/pilot/."""
    spec = prepared.spec
    check_writable(spec)
    standing = read_standing(spec.output.path)
    check_agrees(prepared, standing)
    if spec.privacy.mechanism == "dp" and standing.lock is not None:
        raise spec.error(
            "output.path",
            "the set stands already, and a pilot would need its release; ask for a few tiles more instead",
        )
    with tempfile.TemporaryDirectory(prefix="synthfactory-pilot-") as scratch:
        classes = {
            name: item.model_copy(update={"count": per_class, "fraction": None}) for name, item in spec.classes.items()
        }
        output = spec.output.model_copy(
            update={"path": f"{scratch}/out", "shard_size": per_class * len(classes), "format": "png"}
        )
        budget = spec.budget.model_copy(update={"network_calls": None, "device_hours": None})
        small = spec.model_copy(
            update={
                "classes": classes,
                "total": None,
                "output": output,
                "lineage": f"{scratch}/lineage",
                "budget": budget,
                "bags": None,  # else the few tiles of a class would be of one bag, and the figures of its patients
            }
        )
        result = build(replace(prepared, spec=small), LocalPool, say=say, use_lease=False)
        if result.set_aside:  # nothing that was drawn would say anything of the set
            raise InputError(
                f"the pilot's tiles could not be drawn: {next(iter(result.set_aside.values()))}; nothing was written"
            )
        found = _by_class(Path(scratch) / "lineage" / "units", list(spec.classes))
        sheet = contact_sheet(
            first_tiles(open_store(f"{scratch}/out"), list(spec.classes), per_class),
            columns=per_class,
            title=f"{spec.name}: pilot, not for publication",
        )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    lineage = open_store(spec.lineage)
    guard(lineage)
    lineage.put(SHEET, buffer.getvalue())
    yield from _figures(prepared, found, result, workers, lineage)
    yield f"contact sheet: {spec.lineage}/{SHEET}"


def _by_class(units: Path, classes: list[str]) -> dict[str, ClassPilot]:
    found = {name: ClassPilot() for name in classes}
    seen: set[tuple[str, int]] = set()
    for path in sorted(units.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            entry, slot = found[row["class_name"]], (row["class_name"], row["index"])
            entry.slots += slot not in seen
            seen.add(slot)
            entry.drawn += 1
            entry.kept += bool(row["accepted"])
            entry.reasons.update(row["reasons"])
    return found


def _figures(
    prepared: Prepared, found: dict[str, ClassPilot], result: BuildResult, workers: int, lineage: Store
) -> Iterator[str]:
    spec = prepared.spec
    width = min(38, max(len("class"), *map(len, found)))
    yield f"{'class':<{width}} {'drawn':>6} {'kept':>6}  rejected for"
    for name, entry in found.items():
        shown = name if len(name) <= width else name[: width - 1] + "…"
        reasons = ", ".join(f"{reason} {count}" for reason, count in entry.reasons.most_common()) or "-"
        yield f"{shown:<{width}} {entry.drawn:>6} {entry.kept:>6}  {reasons}"
    busy = sum(result.seconds.values())
    seconds_per_call = busy / max(result.network_calls, 1)
    yield ""
    yield f"{result.tiles / max(busy, 1e-9):.2f} tiles/s kept, {result.drawn / max(busy, 1e-9):.2f} candidates/s, by one worker"
    plan = prepared.plan(read_standing(spec.output.path), seconds_per_call)
    done: Counter[str] = Counter()
    for commit in read_standing(spec.output.path).commits.values():
        done.update(commit.classes)
    missing = {name: max(0, count - done[name] - plan.shortfall.get(name, 0)) for name, count in plan.counts.items()}
    forecast = {name: found[name].expected(spec.max_attempts_for(name)) for name in missing}
    calls = sum(count * calls_per_tile(spec.sampler_for(name)) * forecast[name][0] for name, count in missing.items())
    seconds = calls * seconds_per_call
    figures = {
        "seconds_per_call": seconds_per_call,
        "network_calls_expected": round(calls),
        "classes": {
            name: {"drawn": entry.drawn, "kept": entry.kept, "rejects": dict(entry.reasons)}
            for name, entry in found.items()
        },
    }
    lineage.put(FIGURES, json.dumps(figures, indent=1, sort_keys=True).encode() + b"\n")
    if not any(missing.values()):
        yield "nothing is left to draw of the set itself"
        return
    what = "what is missing of the set" if done else "the whole set"
    yield f"{what}: about {calls:,.0f} network calls with redraws,"
    yield (
        f"  {duration(seconds / 1.2 / workers)} to {duration(seconds * 1.2 / workers)} on {workers} "
        f"worker{'s' * (workers > 1)} like this one"
    )
    limit, hours = spec.budget.network_calls, spec.budget.device_hours
    before, before_sec = spent_before(lineage) if limit or hours else (0, 0.0)
    if limit is not None and calls + before > limit:
        more = calls + before - limit
        yield f"warning: budget.network_calls is {limit:,}; with these rejects the set needs {more:,.0f} more"
    if hours is not None and (seconds + before_sec) / 3600 > hours:
        more = (seconds + before_sec) / 3600 - hours
        yield f"warning: budget.device_hours is {hours:g}; with these rejects the set needs {more:.3g} more"
    for name, entry in found.items():
        lost = missing[name] * forecast[name][1]
        if not entry.kept:
            yield f"warning: {name}: no candidate was kept; look at the screens' limits, the bank and the contact sheet"
        elif lost >= 1:
            yield (
                f"warning: {name}: about {lost:,.0f} of {missing[name]:,} tiles would find no candidate in "
                f"{spec.max_attempts_for(name)} attempts (budget.max_attempts)"
            )
