"""A spec with `balance` -> the same with counts, and what the plan says of them: real, synthetic, total, effective patients."""

from __future__ import annotations

from collections.abc import Mapping

from synthfactory.embeddings.counts import RealClass, read_counts
from synthfactory.plan.balance import allocate, effective_patients, shares, topped_up
from synthfactory.plan.behind import behind as stands_behind
from synthfactory.plan.behind import in_short
from synthfactory.plan.plan import ClassSummary
from synthfactory.plan.tcga import Study, near, source, study_of
from synthfactory.run.source import Conditions
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec
from synthfactory.spec.text import counted, shown, shown_path

NAMED = 6  # other labels of a file that are named
APART = 0.2  # between the largest and the smallest synthetic share of a class: from here on it is warned of


def balanced(spec: Spec, conditions: Conditions, held: Mapping[str, int] | None = None) -> tuple[Spec, tuple[str, ...]]:
    """(the spec with a count for every class, sentences for the plan); as it is without `balance`.

    No class gets fewer than its OUT has already (`held`), whatever has become of the real counts: a patient who was taken out of the bank
    is still to be revoked. InputError at its place in the spec where floors and caps leave no room, or a class comes to no tile.
    """
    balance = spec.balance
    if balance is None:
        return spec, ()
    assert spec.total is not None
    behind, beside = _real(spec, conditions.summaries)
    real = {name: item.real for name, item in behind.items()}
    floors = {name: max(item.floor or 0, (held or {}).get(name, 0)) for name, item in spec.classes.items()}
    caps = {name: item.cap for name, item in spec.classes.items() if item.cap is not None}
    _check_room(spec, floors, caps, held or {})
    try:
        if balance.kind == "top_up" and not balance.even_fraction:
            counts = topped_up(spec.total, real, floors, caps)
        else:
            kind = "uniform" if balance.kind == "top_up" else balance.kind
            counts = allocate(spec.total, shares(kind, real, balance.parameter), floors, caps)
    except ValueError as error:
        raise spec.error("total", f"{spec.total:,} cannot be shared out: {error}") from None
    empty = next((name for name, count in counts.items() if not count), None)
    if empty is not None:
        why = f"comes to no tile of {spec.total:,}; raise total, give it a floor, or leave it out"
        if balance.kind == "top_up" and not balance.even_fraction:
            why = "has more real tiles than the others would have with total; leave it out, or raise total"
        raise spec.error(f"classes.{empty}", why)
    classes = {
        name: item.model_copy(update={"count": counts[name], "floor": None, "cap": None})
        for name, item in spec.classes.items()
    }
    made = spec.model_copy(update={"classes": classes, "total": None, "balance": None})
    says = (
        _sentence(spec, counts, real),
        *beside,
        *_per_class(spec, counts, behind, conditions.summaries),
        *_trap(spec, counts, real),
    )
    return made, says


def _check_room(spec: Spec, floors: Mapping[str, int], caps: Mapping[str, int], held: Mapping[str, int]) -> None:
    """InputError at its own place, with the numbers, where floors, caps, OUT and total cannot all hold."""
    assert spec.total is not None
    for name, cap in caps.items():
        if cap < floors[name]:
            what = "output.path already holds" if held.get(name, 0) == floors[name] else "its floor is"
            raise spec.error(f"classes.{name}.cap", f"{cap:,} is too few: {what} {floors[name]:,}")
    least = sum(floors.values())
    if least > spec.total:
        kept = sum(held.get(name, 0) for name in spec.classes)
        what = "so many do the floors ask for"
        if kept:
            what = f"output.path already holds {kept:,}" + (
                ", and a set only grows" if kept > spec.total else ", and floors ask for more"
            )
        raise spec.error("total", f"{spec.total:,} is too few: at least {least:,} are needed ({what})")
    if len(caps) == len(spec.classes) and sum(caps.values()) < spec.total:
        raise spec.error("total", f"{spec.total:,} is too many: the caps allow {sum(caps.values()):,}; raise a cap")


def _real(spec: Spec, summaries: Mapping[str, ClassSummary]) -> tuple[dict[str, RealClass], tuple[str, ...]]:
    """(what there is of each class, sentences on what else the file of counts holds)."""
    assert spec.balance is not None
    given, path = spec.balance.against, spec.balance.file
    if given == "tcga":
        return {name: RealClass(study.cases) for name, study in _studies(spec).items()}, ()
    if path is None:
        real = given if isinstance(given, dict) else {name: summaries[name].rows for name in spec.classes}
        return {name: RealClass(real[name]) for name in spec.classes}, ()
    try:
        found = read_counts(path, spec.classes)
    except InputError as error:
        raise spec.error("balance.against", str(error)) from None
    if not found.others:
        return dict(found.classes), ()
    named = ", ".join(shown(label) for label in found.others[:NAMED])
    more = f" and {len(found.others) - NAMED:,} more" if len(found.others) > NAMED else ""
    return dict(found.classes), (f"{shown_path(path)} also counts {named}{more}, of which no tile is asked for",)


def _studies(spec: Spec) -> dict[str, Study]:
    """The study of each class. InputError for a class that is none, or the same as another."""
    found: dict[str, Study] = {}
    for name in spec.classes:
        study = study_of(name)
        if study is None:
            meant = " or ".join(f"'{other.code}' ({other.name})" for other in near(name))
            hint = f"is {meant} meant?" if meant else "codes are such as BRCA or TCGA-BRCA"
            raise spec.error(f"classes.{name}", f"is no study of TCGA; {hint}")
        same = next((other for other in found if found[other] is study), None)
        if same is not None:
            raise spec.error(f"classes.{name}", f"is the same study of TCGA as {same}; keep one of them")
        found[name] = study
    return found


def _sentence(spec: Spec, counts: Mapping[str, int], real: Mapping[str, int]) -> str:
    assert spec.balance is not None
    of = "the bank's rows" if spec.balance.against == "bank" else shown_path(spec.balance.file or "the counts given")
    unit = ""
    if spec.balance.against == "tcga":
        of, unit = f"cases of TCGA's studies ({source()})", " cases"
    more = f" ({spec.balance.parameter:g})" if spec.balance.parameter is not None else ""
    return f"{spec.balance.kind}{more} against {of}: {sum(counts.values()):,} synthetic beside {sum(real.values()):,} real{unit}"


def _per_class(
    spec: Spec, counts: Mapping[str, int], behind: Mapping[str, RealClass], summaries: Mapping[str, ClassSummary]
) -> list[str]:
    lines = []
    for name, count in counts.items():
        stands, real = stands_behind(spec, summaries[name].patients, count), behind[name].real
        if spec.balance is not None and spec.balance.against == "tcga":  # cases and tiles make no sum
            rests = "" if stands is None else f" from {stands.in_words()}"
            lines.append(f"{name}: {real:,} cases of TCGA, {count:,} synthetic{rests}")
            continue
        rests = "" if stands is None else f", from {stands.in_words()}"
        lines.append(
            f"{name}: {real:,} real{_patients(behind[name])} and {count:,} synthetic are {real + count:,} "
            f"({count / (count + real):.0%} synthetic{rests})"
        )
    return lines


def _patients(item: RealClass) -> str:
    """Of how many patients the real ones of a file are, and as how many equal ones they weigh."""
    if item.patients is None:
        return ""
    if isinstance(item.patients, int):
        return f" of {counted(item.patients, 'patient')}"
    unknown = f", {item.patients['']:,} of no named patient taken as one's" if "" in item.patients else ""
    return f" of {counted(len(item.patients), 'patient')} ({in_short(effective_patients(item.patients))} effective{unknown})"


def _trap(spec: Spec, counts: Mapping[str, int], real: Mapping[str, int]) -> list[str]:
    """Where 'synthetic' would tell classes apart; under top_up, how many real tiles to take so that it does not."""
    assert spec.balance is not None
    if spec.balance.against == "tcga":
        return []
    even = spec.balance.kind == "top_up" and spec.balance.even_fraction
    beside = dict.fromkeys(real, min(real.values())) if even else real
    advice = [f"take at most {min(real.values()):,} real tiles of each class beside them"] if even else []
    parts = {name: count / (count + beside[name]) for name, count in counts.items()}
    low, high = min(parts, key=parts.__getitem__), max(parts, key=parts.__getitem__)
    if parts[high] - parts[low] >= APART:
        what = (
            "floors and caps are in the way"
            if even
            else "take fewer real tiles of the common classes, so that the shares are even"
        )
        return [
            *advice,
            f"warning: {high} would be {parts[high]:.0%} synthetic and {low} {parts[low]:.0%}: a classifier may learn that synthetic means "
            f"one class; {what}",
        ]
    return [f"{text}: then every class is as synthetic as the others" for text in advice]
