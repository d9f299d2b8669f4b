"""The plan: what a build would do, computed without drawing anything, and how it is printed (80 columns)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from synthfactory.plan.allocate import class_counts
from synthfactory.plan.behind import Behind, behind, in_short
from synthfactory.plan.cost import Estimate, calls_per_tile, estimate
from synthfactory.plan.recipe import ModelFacts
from synthfactory.plan.rounds import Round, next_round, num_shards, totals
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec
from synthfactory.spec.sections import Screen
from synthfactory.spec.text import counted

FEW_PATIENTS = 5
MANY_SHARDS = 1000  # more than there are workers
BYTES_PER_TILE = {"png": 100_000, "webp": 85_000, "jpeg": 45_000}  # 224 px of H&E; measured on phantom and real tiles


@dataclass(frozen=True)
class ClassSummary:
    """What stands behind a class in the bank. Rows without a patient count as one explicit patient, `unknown_rows` of them.

    `cohort_rows` are those of `cohort_patients` of a published model's training set; like all counts of patients they never enter OUT.
    """

    rows: int
    patients: int
    slides: int
    unknown_rows: int
    label_levels: tuple[str, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)  # condition screen -> rows it took
    cohort_rows: int = 0
    cohort_patients: int = 0
    sites: int = 0  # that are known, of slides or, without slides, of patients that have one


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
    done: Mapping[str, int]  # tiles that are committed, of all classes of OUT
    shortfall: Mapping[str, int]  # tiles that no attempt gave; they are not tried again
    shards_done: int
    cohort: str = "unknown"  # whether patients of a published model's training set are among the conditions
    balance: tuple[str, ...] = ()  # how the total was shared out, a sentence each
    privacy: tuple[str, ...] = ()  # what stands between the bank and the conditions, a sentence each

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
    shortfall: Mapping[str, int] | None = None,
    shards_done: int = 0,
    seconds_per_call: float | None = None,
    cohort: str = "unknown",
    privacy: Sequence[str] = (),
    balance: Sequence[str] = (),
) -> Plan:
    """Computes the plan; `committed` tiles and those of `shortfall` are not drawn again.

    `seconds_per_call` overrides the model's stated speed (measured).
    """
    counts = class_counts(spec)
    try:
        step = next_round(rounds, counts, spec.output.shard_size)
    except InputError as error:
        raise _placed(spec, error) from None
    want = totals([*rounds, step] if step else rounds)
    done, given_up = committed or {}, shortfall or {}
    missing = {name: max(0, want[name] - done.get(name, 0) - given_up.get(name, 0)) for name in counts}
    cost = estimate(spec, missing, seconds_per_call or model.seconds_per_call, measured=seconds_per_call is not None)
    return Plan(
        spec,
        model,
        counts,
        bank,
        tuple(rounds),
        step,
        cost,
        done,
        given_up,
        shards_done,
        cohort,
        tuple(balance),
        tuple(privacy),
    )


def _placed(spec: Spec, error: InputError) -> InputError:
    """An error that begins with classes.NAME, with its place in the spec in front."""
    text = str(error)
    path = max((f"classes.{name}" for name in spec.classes if text.startswith(f"classes.{name}: ")), key=len)
    hint = "" if spec.total is None else " (of classes with fractions, a larger total will do)"
    return spec.error(path, f"{text.removeprefix(f'{path}: ')}{hint}")


def _span(seconds: float) -> str:
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.2g} {unit}" if seconds / size < 10 else f"{seconds / size:.0f} {unit}"
    days = seconds / 86_400
    return f"{days:.3g} days" if days < 100 else f"{days:,.0f} days"


def _bytes(count: float) -> str:
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} PB"


def _columns(text: str) -> int:
    """Columns on a terminal: wide characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _head(text: str, width: int) -> str:
    """As much of the text's beginning as fits; at least one character."""
    end = 1
    while end < len(text) and _columns(text[: end + 1]) <= width:
        end += 1
    return text[:end]


def _cell(text: str, width: int) -> str:
    """The text filled up to `width` columns, or cut in the middle (long names often differ at their end)."""
    if _columns(text) > width:
        tail = _head(text[::-1], width // 2 - 1)[::-1]
        text = f"{_head(text, width - 1 - _columns(tail))}…{tail}"
    return text + " " * (width - _columns(text))


def _wrapped(text: str, width: int, indent: int) -> list[str]:
    """Lines of at most `width` columns, the later ones indented; words longer than a line are broken."""
    lines, line = [], ""
    for word in text.split(" "):
        if line.strip() and _columns(f"{line} {word}") > width:
            lines.append(line.rstrip())
            line = " " * indent + word
        else:
            line = f"{line} {word}" if line else word
        while _columns(line) > width:
            head = _head(line, width)
            lines.append(head)
            line = " " * indent + line[len(head) :]
    return [*lines, line]


def _shared(shards: int) -> str:
    """How many workers can share what is left, a shard being one worker's."""
    if shards > MANY_SHARDS:
        return ", divided by the number of workers"
    return f"; shards are shared by up to {shards:,} workers" if shards > 1 else "; 1 shard keeps 1 worker busy"


def render(plan: Plan, width: int = 80) -> str:
    """The plan as text of at most `width` (80 or more) columns: class names are cut where they must be, all else is wrapped."""
    spec = plan.spec
    total = sum(plan.counts.values())
    shards = num_shards(plan.all_rounds)
    new = f"{plan.new_round.num_shards:,} of them new" if plan.new_round else ""
    there = f"{plan.shards_done:,} of them there" if plan.rounds else ""
    state = ", ".join(filter(None, (there, new)))
    size = _bytes(total * BYTES_PER_TILE[spec.output.format])
    entries = [
        f"shards         {shards:,} ({state}), {spec.output.format}, about {size} in all",
        f"network calls  {plan.cost.network_calls:,} without rejects, at most {plan.cost.worst_network_calls:,}",
    ]
    if spec.bags is not None:
        each = (
            f", of {counted(spec.bags.group, 'patient')}"
            if spec.bags_follow_patients
            else ", which share patients where a class has few"
            if spec.privacy.mechanism == "mix"
            else ", which share only a class"
        )
        bags = sum(-(-count // spec.bags.size) for count in plan.counts.values())
        entries.insert(1, f"bags           {bags:,} of {spec.bags.size:,} tiles each{each}")
    if plan.cost.network_calls == 0:
        entries[-1:] = ["network calls  none: nothing is left to draw"]
    elif plan.cost.seconds is None:
        entries.append("time           unknown: no speed is stated; `synthfactory pilot` measures it")
    else:
        low, high = plan.cost.seconds
        entries.append(
            f"time           {_span(low)} to {_span(high)} on one device{_shared(shards - plan.shards_done)}"
        )
    heading = f"{spec.name}: model {plan.model.id} revision {plan.model.revision}, into {spec.output.path}"
    lines = [*_wrapped(heading, width, 2), "", *_table(plan, total, width), ""]
    for entry in entries:
        lines += _wrapped(entry, width, 15)
    for title, texts in (("balance", plan.balance), ("privacy", plan.privacy)):
        told = [line for text in texts for line in _wrapped(text, width - 15, 2)]
        lines += [f"{'' if number else title:<15}{line}" for number, line in enumerate(told)]
    for note in _notes(plan):
        lines += _wrapped(note, width, 2)
    return "\n".join(lines)


def _table(plan: Plan, total: int, width: int) -> list[str]:
    rows = [("class", "tiles", "calls/tile", "patients", "effective", "rows", "labels of")]
    for name, count in plan.counts.items():
        item, stands = plan.bank[name], _behind(plan, name)
        patients = f"{item.patients:,}{'?' if item.unknown_rows else ''}"
        calls = f"{calls_per_tile(plan.spec.sampler_for(name)):,}"
        effective = "-" if stands is None else str(stands)
        rows.append((name, f"{count:,}", calls, patients, effective, f"{item.rows:,}", ", ".join(item.label_levels)))
    rows.append(("total", f"{total:,}", "", "", "", "", ""))
    names, *numbers, levels = ([*column] for column in zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in numbers]
    level_width = max(map(len, levels))
    name_width = min(max(map(_columns, names)), max(8, width - sum(widths) - len(widths) - 2 - level_width))
    lines = []
    for name, *cells, level in rows:
        filled = " ".join(f"{text:>{fill}}" for text, fill in zip(cells, widths, strict=True))
        lines.append(_head(f"{_cell(name, name_width)} {filled}  {level}", width).rstrip())
    return lines


def _behind(plan: Plan, name: str) -> Behind | None:
    """What stands behind the class's planned tiles."""
    return behind(plan.spec, plan.bank[name].patients, plan.counts[name])


def _few(plan: Plan, name: str) -> list[str]:
    """A note where a class rests on few patients: by the conditions that each gives, and under a release by patients alone."""
    stands = _behind(plan, name) or Behind(plan.bank[name].patients, float(plan.bank[name].patients))
    if not 0 < stands.effective < FEW_PATIENTS:
        return []
    uneven = f" ({in_short(stands.effective)} effective)" if stands.effective < stands.patients else ""
    few = f"{counted(stands.patients, 'patient')} only{uneven}"
    return [f"note: {name} rests on {few}; its tiles will resemble them"]


def _notes(plan: Plan) -> list[str]:
    notes = []
    for name in plan.counts:
        item = plan.bank[name]
        if item.unknown_rows:
            notes.append(f"note: {name}: {item.unknown_rows:,} rows name no patient; they count as one patient")
        if item.dropped:
            taken = ", ".join(f"{count:,} {screen}" for screen, count in sorted(item.dropped.items()))
            notes.append(f"note: {name}: embeddings.screen left out {taken}; {item.rows:,} rows remain")
        notes.extend(_few(plan, name))
        if item.sites == 1 and max(other.sites for other in plan.bank.values()) > 1:
            notes.append(
                f"note: {name} rests on one site, as far as sites are known, other classes on more; a classifier may learn that site's "
                "stain for the class (`synthfactory evaluate` measures it)"
            )
    for name in sorted(plan.shortfall.keys() & plan.counts.keys()):
        count = plan.shortfall[name]
        notes.append(
            f"note: {name}: {count:,} tile{'s' * (count != 1)} found no candidate and stay empty; ask for more of the class instead"
        )
    dropped = {name: plan.done[name] for name in plan.done.keys() - plan.counts.keys()}
    notes.extend(
        f"note: {plan.spec.output.path} also holds {count:,} tile{'s' * (count != 1)} of {name}, which the spec no longer names; they stay"
        for name, count in sorted(dropped.items())
    )
    if plan.model.domain:
        notes.append(f"note: model {plan.model.id} draws {plan.model.domain}")
    if plan.spec.screen == Screen():
        notes.append("note: no screen is on; every tile that is drawn is kept")
    if plan.cohort == "some":
        notes.append(
            "warning: patients of TCGA are among the conditions, and CytoSyn was trained on TCGA; evaluations on them are contaminated"
        )
        notes.extend(_cohort_notes(plan))
    notes.extend(f"warning: {text}" for text in plan.spec.warnings)
    return ["", *notes] if notes else []


def _cohort_notes(plan: Plan) -> list[str]:
    """Which classes rest on patients of the training set, and how far."""
    notes, free = [], []
    for name in plan.counts:
        item = plan.bank[name]
        if not item.cohort_rows:
            free.append(name)
            continue
        patients = f"{item.cohort_patients:,} TCGA patient{'s' * (item.cohort_patients != 1)}"
        notes.append(f"note: {name}: {item.cohort_rows:,} of its {item.rows:,} rows are of {patients}")
    if free:
        notes.append(f"note: no row of {', '.join(free)} is known to be of TCGA")
    return notes
