"""Makes a bank of any source: two passes over its rows, whatever their order and number, then sorting and checks.

The first pass reads texts only and counts the rows of each group (label, patient, slide); the second puts every embedding where its
group lies. Small banks are made in memory; large ones in a folder of the cache, under a temporary name until whole, and found there
again as long as the source stays as it is. What stays in memory is a table of groups, and one piece of the source.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from synthfactory.embeddings.bank import LEVELS, Bank, Groups, class_facts
from synthfactory.embeddings.columns import Column
from synthfactory.embeddings.index_folder import key_of, new_folder, opened, save
from synthfactory.embeddings.ordering import placed, repeats, sort_groups
from synthfactory.embeddings.overlap import count_overlapping
from synthfactory.embeddings.rows import Coded, Rows, RowSource, known
from synthfactory.embeddings.screening import Limits, failing, told
from synthfactory.embeddings.sites import Group, SlideSites
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown

IN_MEMORY_BYTES = 64 << 20


def build_bank(
    source: RowSource,
    classes: Sequence[str] | None,
    *,
    limits: Limits | None = None,
    cache: Path | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> Bank:
    """The bank of these classes (None: of all labels). `limits` are condition screens.

    Raises InputError, naming the source, for an absent label, a class that screens leave empty, unknown levels, NaN, one embedding
    under two labels. A bank above `in_memory_bytes` is made in (or found again below) the folder `cache`, which must then be given.
    """
    key = None if source.identity is None else key_of(source, classes, limits or {})
    if key and cache is not None and (found := opened(cache / f"index-{key}")) is not None:
        return found
    counted = _count(source, classes, limits or {})
    row_bytes = 4 * source.width + 1 + 8 + 8
    if counted.rows * row_bytes <= in_memory_bytes or cache is None or key is None:
        return _filled(source, counted, limits or {}, None)
    with new_folder(cache, key) as (folder, target):
        save(folder, _filled(source, counted, limits or {}, folder))
        try:
            folder.rename(target)
        except OSError:  # another build was faster; theirs is the same
            if opened(target) is None:
                raise
    made = opened(target)
    assert made is not None
    return made


@dataclass
class _Counted:
    """What the first pass finds."""

    groups: dict[Group, int] = field(default_factory=dict)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    sites: SlideSites = field(default_factory=SlideSites)

    @property
    def rows(self) -> int:
        return sum(self.groups.values())


def _count(source: RowSource, classes: Sequence[str] | None, limits: Limits) -> _Counted:
    found, seen, before = _Counted(), set[str](), Counter[str]()
    for rows in source.rows(False):
        present = np.unique(rows.labels.codes)
        seen.update(name for code in present.tolist() if (name := rows.labels.names[code]) is not None)
        chosen = _chosen(rows, classes, source)
        _check_levels(chosen, source)
        for name, count in _by_label(chosen).items():
            before[name] += count
        kept, lost = _screened(chosen, limits)
        for name, reasons in lost.items():
            found.dropped.setdefault(name, Counter()).update(reasons)
        group_of, names, counts = _grouped(kept)
        for name, count in zip(names, counts.tolist(), strict=True):
            found.groups[name] = found.groups.get(name, 0) + count
        if kept.sites is not None:
            found.sites.note(group_of, names, kept.sites)
    _check_present(source, seen, classes, before, found)
    return found


def _check_present(
    source: RowSource, seen: set[str], classes: Sequence[str] | None, before: Counter[str], found: _Counted
) -> None:
    for name in classes or ():
        if name not in before:
            close = difflib.get_close_matches(name, sorted(seen), 1)
            listed = ", ".join(map(shown, sorted(seen)[:12])) + (", ..." if len(seen) > 12 else "")
            meant = f"; is '{shown(close[0])}' meant?" if close else ";"
            raise InputError(
                f"classes.{name}: {source.what} {source.where} has no such label{meant} it has: {listed or 'none'}"
            )
        if before[name] == sum(found.dropped.get(name, Counter()).values()):
            raise left_empty(name, before[name], found.dropped[name])
    if not found.groups:
        raise InputError(f"{source.where}: holds no rows; a bank needs at least one embedding per class")


def left_empty(name: str, rows: int, dropped: Mapping[str, int]) -> InputError:
    """What to say where condition screens leave a class without rows."""
    return InputError(
        f"classes.{name}: embeddings.screen leaves none of its {rows:,} rows ({told(dropped)}); loosen the screens, "
        "or take the class out"
    )


def _chosen(rows: Rows, classes: Sequence[str] | None, source: RowSource) -> Rows:
    """The rows of the classes asked for; of all labels where none are named: then InputError for a row without one."""
    if classes is None:
        bare = np.array([not name for name in rows.labels.names], bool)
        if len(bare) and (nameless := np.flatnonzero(bare[rows.labels.codes])).size:
            row = source.name_of(int(rows.numbers[nameless[0]]))
            raise InputError(
                f"{source.where}: {row} has no label, and all rows are asked for; label it, or take it out"
            )
    wanted = np.array([name is not None and (classes is None or name in classes) for name in rows.labels.names], bool)
    mask = wanted[rows.labels.codes] if len(wanted) else np.zeros(0, bool)
    return rows if mask.all() else rows.take(np.flatnonzero(mask))


def _by_label(rows: Rows) -> dict[str, int]:
    counts = np.bincount(rows.labels.codes, minlength=len(rows.labels.names)).tolist()
    found = Counter[str]()
    for name, count in zip(rows.labels.names, counts, strict=True):
        if count:
            found[str(name)] += count
    return dict(found)


def _check_levels(rows: Rows, source: RowSource) -> None:
    wrong = np.array([level not in LEVELS for level in rows.levels.names], bool)
    bad = np.flatnonzero(wrong[rows.levels.codes]) if wrong.any() else np.zeros(0, np.int64)
    if len(bad):
        row = int(bad[0])
        raise InputError(
            f"{source.where}: label_level '{shown(rows.levels.at(row) or '')}' of {source.name_of(int(rows.numbers[row]))} does not "
            "exist; it would be slide, region or tile"
        )


def _screened(rows: Rows, limits: Limits) -> tuple[Rows, dict[str, Counter[str]]]:
    """Rows within all limits, and how many each screen took of each label."""
    kept, lost = np.ones(len(rows), bool), dict[str, Counter[str]]()
    for name, fails in failing(rows.scores, limits):
        for label, count in _by_label(rows.take(np.flatnonzero(fails))).items():
            lost.setdefault(label, Counter())[name] += count
        kept &= ~fails
    return (rows if kept.all() else rows.take(np.flatnonzero(kept))), lost


def _grouped(rows: Rows) -> tuple[np.ndarray, list[Group], np.ndarray]:
    """(group of each row as an index into the groups of this piece, those groups, rows of each)."""
    patients, slides = len(rows.patients.names), len(rows.slides.names)
    together = (rows.labels.codes.astype(np.int64) * patients + rows.patients.codes) * slides + rows.slides.codes
    present, inverse, counts = np.unique(together, return_inverse=True, return_counts=True)
    names = [
        (
            str(rows.labels.names[code // slides // patients]),
            known(rows.patients.names[code // slides % patients]) or "",
            known(rows.slides.names[code % slides]) or "",
        )
        for code in present.tolist()
    ]
    return inverse, names, counts


def _filled(source: RowSource, counted: _Counted, limits: Limits, folder: Path | None) -> Bank:
    """The second pass, sorting, and the checks that need all rows. Files go into `folder`; None is memory."""
    order = sorted(counted.groups)
    starts = np.concatenate([[0], np.cumsum([counted.groups[name] for name in order], dtype=np.int64)])
    total = int(starts[-1])
    columns = {
        "embeddings": Column.create(folder, "embeddings.f4", "<f4", (total, source.width)),
        "levels": Column.create(folder, "levels.u1", "u1", (total,)),
        "numbers": Column.create(folder, "numbers.i8", "<i8", (total,)),
    }
    has_places = _scatter(source, {name: number for number, name in enumerate(order)}, starts, columns, limits, folder)
    sort_groups(columns, starts, folder)
    groups = Groups(
        tuple(label for label, _, _ in order),
        tuple(patient or None for _, patient, _ in order),
        tuple(slide or None for _, _, slide in order),
        starts,
        counted.sites.of(order),
    )
    warnings = _check_repeats(source, columns, groups, folder) + counted.sites.warnings(source.where)
    if has_places:
        warnings += _check_overlap(source, columns["places"], groups)
    classes = {
        name: class_facts(columns["embeddings"], columns["levels"], groups, name)
        for name in dict.fromkeys(groups.labels)
    }
    dropped = {name: dict(lost) for name, lost in counted.dropped.items()}
    return Bank(columns["embeddings"], columns["levels"], groups, dict(source.encoder), classes, warnings, dropped)


def _scatter(
    source: RowSource,
    number_of: Mapping[Group, int],
    starts: np.ndarray,
    columns: dict[str, Column],
    limits: Limits,
    folder: Path | None,
) -> bool:
    """Fills the columns group by group; True where rows have places, which get a column too. InputError for NaN."""
    classes = {label for label, _, _ in number_of}
    filled, bad, first_bad = starts[:-1].copy(), 0, -1
    code_of = {level: code for code, level in enumerate(LEVELS)}
    for whole in source.rows(True):
        rows, _ = _screened(_chosen(whole, list(classes), source), limits)
        if not len(rows):
            continue
        assert rows.vectors is not None
        finite = np.isfinite(rows.vectors).all(axis=1)
        if not finite.all():
            first_bad = int(rows.numbers[np.flatnonzero(~finite)[0]]) if first_bad < 0 else first_bad
            bad += int((~finite).sum())
        inverse, names, counts = _grouped(rows)
        numbers = np.array([number_of.get(name, -1) for name in names], np.int64)
        if (numbers < 0).any() or (filled[numbers] + counts > starts[numbers + 1]).any():
            raise _changed(source)
        order, places = placed(numbers[inverse], filled)
        levels = np.array([code_of[str(name)] if name in code_of else 0 for name in rows.levels.names], np.uint8)
        columns["embeddings"].put(places, rows.vectors[order])
        columns["levels"].put(places, levels[rows.levels.codes[order]])
        columns["numbers"].put(places, rows.numbers[order])
        if rows.places is not None:
            if "places" not in columns:
                columns["places"] = Column.create(folder, "places.f8", "<f8", (int(starts[-1]), 2))
            columns["places"].put(places, rows.places[order])
    if bad:
        raise InputError(
            f"{source.where}: {bad} embeddings hold NaN or infinity, the first in {source.name_of(first_bad)}; remove them"
        )
    if (filled != starts[1:]).any():
        raise _changed(source)
    return "places" in columns


def _changed(source: RowSource) -> InputError:
    return InputError(f"{source.where}: changed while it was read; run the command again once nothing writes to it")


def _check_repeats(
    source: RowSource, columns: Mapping[str, Column], groups: Groups, folder: Path | None
) -> tuple[str, ...]:
    edges = [group for group in range(1, len(groups.labels)) if groups.labels[group] != groups.labels[group - 1]]
    doubled, conflict = repeats(columns["embeddings"], groups.starts[edges], folder)
    if conflict is not None:
        rows = np.array(conflict)
        one, two = (source.name_of(int(number)) for number in columns["numbers"].take(rows))
        at = np.searchsorted(groups.starts, rows, side="right") - 1
        raise InputError(
            f"{source.where}: {one} and {two} hold the same embedding under the labels '{shown(groups.labels[at[0]])}' and "
            f"'{shown(groups.labels[at[1]])}'; one tile has one label, so remove one of them"
        )
    return (f"{source.where}: {doubled} rows repeat an embedding",) if doubled else ()


def _check_overlap(source: RowSource, places: Column, groups: Groups) -> tuple[str, ...]:
    by_slide: dict[tuple[str | None, str], list[int]] = {}
    for group, slide in enumerate(groups.slides):
        if slide is not None:
            by_slide.setdefault((groups.patients[group], slide), []).append(group)
    count = 0
    for members in by_slide.values():
        parts = [places.part(int(groups.starts[group]), int(groups.starts[group + 1])) for group in members]
        count += count_overlapping(np.concatenate(parts), source.extent)
    if not count:
        return ()
    return (
        f"{source.where}: {count:,} tiles overlap another of their slide; what they condition will resemble each other",
    )


def make_bank(
    embeddings: np.ndarray,
    labels: Sequence[str],
    label_levels: Sequence[str],
    patient_ids: Sequence[str | None],
    slide_ids: Sequence[str | None],
    encoder: Mapping[str, str],
    where: str,
    *,
    name_of: Callable[[int], str] = "row {}".format,
    corners: np.ndarray | None = None,
    extent: float = 224.0,
    sites: Sequence[str | None] | None = None,
) -> Bank:
    """A checked bank of rows that lie in memory. InputError (naming `where`) for NaN, one embedding under two labels, unknown levels.

    `name_of` says what a row is called in messages (a row of a file, a tile); `corners` float64 (n, 2) and `extent` are places and side
    of the tiles in one unit; `sites` are where they were taken, None for unknown ones.
    """
    vectors = np.ascontiguousarray(embeddings, np.float32)
    rows = Rows(
        np.arange(len(vectors)),
        Coded.of(list(labels)),
        Coded.of(list(label_levels)),
        Coded.of(list(patient_ids)),
        Coded.of(list(slide_ids)),
        vectors,
        corners,
        sites=None if sites is None else Coded.of(list(sites)),
    )
    source = RowSource(where, encoder, vectors.shape[1], lambda _: iter((rows,)), name_of, extent=extent)
    return build_bank(source, None)
