"""The plan: what a build would do, computed without drawing anything, and how it is printed (80 columns)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synthfactory.plan.allocate import class_counts
from synthfactory.plan.cost import Estimate, calls_per_tile, estimate
from synthfactory.plan.recipe import ModelFacts
from synthfactory.plan.rounds import Round, next_round, num_shards, totals
from synthfactory.spec.schema import Spec

FEW_PATIENTS = 5
BYTES_PER_TILE = {"png": 100_000, "webp": 85_000, "jpeg": 45_000}  # 224 px of H&E; measured on phantom and real tiles


@dataclass(frozen=True)
class ClassSummary:
    """What stands behind a class in the bank. Rows without a patient count as one explicit patient, `unknown_rows` of them."""

    rows: int
    patients: int
    slides: int
    unknown_rows: int
    label_levels: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A build into an OUT that has `rounds`: what is asked for, what the next round adds, what it costs."""

    spec: Spec
    model: ModelFacts
    counts: dict[str, int]
    bank: Mapping[str, ClassSummary]
    rounds: tuple[Round, ...]
    new_round: Round | None
    cost: Estimate

    @property
    def all_rounds(self) -> tuple[Round, ...]:
        """Existing rounds and the new one."""
        return (*self.rounds, self.new_round) if self.new_round else self.rounds


def make_plan(
    spec: Spec,
    *,
    model: ModelFacts,
    bank: Mapping[str, ClassSummary],
    rounds: Sequence[Round] = (),
    committed: Mapping[str, int] | None = None,
    seconds_per_call: float | None = None,
) -> Plan:
    """Computes the plan; `committed` tiles are not drawn again. `seconds_per_call` overrides the model's stated speed (measured)."""
    counts = class_counts(spec)
    step = next_round(rounds, counts, spec.output.shard_size)
    want = totals([*rounds, step] if step else rounds)
    done = committed or {}
    missing = {name: max(0, want[name] - done.get(name, 0)) for name in counts}
    cost = estimate(spec, missing, seconds_per_call or model.seconds_per_call, measured=seconds_per_call is not None)
    return Plan(spec, model, counts, bank, tuple(rounds), step, cost)


def _span(seconds: float) -> str:
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.2g} {unit}" if seconds / size < 10 else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:,.3g} days"


def _bytes(count: float) -> str:
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} PB"


def render(plan: Plan, width: int = 80) -> str:
    """The plan as text of at most `width` columns (class names are cut where they must be)."""
    spec = plan.spec
    name_width = min(max(len("class"), *(len(name) for name in plan.counts)), width - 52)
    lines = [f"{spec.name}: model {plan.model.id} revision {plan.model.revision}, into {spec.output.path}", ""]
    lines.append(f"{'class':<{name_width}} {'tiles':>12} {'calls/tile':>10} {'patients':>9} {'rows':>9}  labels of")
    for name, count in plan.counts.items():
        behind = plan.bank[name]
        shown = name if len(name) <= name_width else name[: name_width - 1] + "…"
        calls = calls_per_tile(spec.sampler_for(name))
        patients = f"{behind.patients:,}{'?' if behind.unknown_rows else ''}"
        lines.append(
            f"{shown:<{name_width}} {count:>12,} {calls:>10,} {patients:>9} {behind.rows:>9,}  {', '.join(behind.label_levels)}"
        )
    total = sum(plan.counts.values())
    lines.append(f"{'total':<{name_width}} {total:>12,}")
    lines.append("")
    shards = num_shards(plan.all_rounds)
    state = "nothing new to lay out" if plan.new_round is None else f"{plan.new_round.num_shards:,} of them new"
    lines.append(
        f"shards         {shards:,} ({state}), {spec.output.format}, about {_bytes(total * BYTES_PER_TILE[spec.output.format])} in all"
    )
    lines.append(
        f"network calls  {plan.cost.network_calls:,} without rejects, at most {plan.cost.worst_network_calls:,}"
    )
    if plan.cost.seconds is None:
        lines.append("time           unknown: this model states no speed; `synthfactory pilot` measures it")
    else:
        low, high = plan.cost.seconds
        lines.append(f"time           {_span(low)} to {_span(high)} on one device, divided by the number of workers")
    lines.extend(_notes(plan))
    return "\n".join(lines)


def _notes(plan: Plan) -> list[str]:
    notes = []
    for name in plan.counts:
        behind = plan.bank[name]
        if behind.unknown_rows:
            notes.append(f"note: {name}: {behind.unknown_rows:,} rows name no patient; they count as one patient")
        if behind.patients < FEW_PATIENTS:
            notes.append(
                f"note: {name} rests on {behind.patients} patient{'s' * (behind.patients != 1)} only; its tiles will resemble them"
            )
    notes.extend(f"warning: {text}" for text in plan.spec.warnings)
    return ["", *notes] if notes else []
