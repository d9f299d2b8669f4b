"""CSVs of labels that stand beside features: read line by line, every fault with its line."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Iterator, Sequence
from typing import TextIO

from synthfactory.embeddings.bank import LEVELS
from synthfactory.embeddings.checks import check_fraction, check_mpp
from synthfactory.embeddings.places import is_pattern
from synthfactory.embeddings.rows import known
from synthfactory.shards.store import open_source
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown

MAX_LINE = 1 << 20  # characters; a file without line ends would else be read into memory whole
Line = tuple[int, dict[str, str]]  # number of the line in the file, column -> text without spaces at its ends

KNOWN = (
    "tile", "label", "label_level", "patient_id", "slide_id", "site", "scanner", "mpp", "x", "y", "tumour_fraction",
)  # fmt: skip

LABELS = ("class", "class_name", "category", "diagnosis")  # what others call a column of labels
SYNONYMS = {  # and others of ours
    **dict.fromkeys(
        ("case", "case_id", "subject", "subject_id", "participant", "participant_id", "mrn", "donor_id"), "patient_id"
    ),
    **dict.fromkeys(("hospital", "center", "centre", "institution"), "site"),
}


def read_lines(path: str, needed: Sequence[str], what: str, also: Sequence[str] = ()) -> Iterator[Line]:
    """The lines of a CSV in UTF-8 with a header. InputError where a column of `needed` is absent; `what` says what the CSV is.

    `also` are columns that this CSV alone may have; close spellings of known ones are refused.
    """
    try:
        with open_source(path) as raw, io.TextIOWrapper(raw, newline="", encoding="utf-8-sig") as handle:
            rows = csv.DictReader(_bounded(handle), restval="")
            names = list(rows.fieldnames or ())
            _check_header(names, needed, path, what, (*KNOWN, *also))
            for row in rows:
                if None in row:  # else every value behind an unquoted comma would stand under the wrong name
                    raise InputError(
                        f"{path}:{rows.line_num}: has {len(names) + len(row[None])} values, but the header has {len(names)}; "
                        "put a text that holds a comma in double quotes"
                    )
                yield rows.line_num, {name: (row[name] or "").strip() for name in names if isinstance(row[name], str)}
    except FileNotFoundError:
        if is_pattern(path):
            raise InputError(f"{path}: is a pattern, and one CSV is needed; name that file") from None
        raise InputError(f"{path}: no such file; {what}") from None
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: is no readable CSV in UTF-8 ({shown(str(error))})") from None


def _bounded(handle: TextIO) -> Iterator[str]:
    while line := handle.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith("\n"):
            raise csv.Error(f"a line has more than {MAX_LINE:,} characters")
        yield line


def _check_header(names: Sequence[str], needed: Sequence[str], path: str, what: str, known: Sequence[str]) -> None:
    """InputError for another separator, an absent column, and what `check_names` refuses."""
    for mark in ";\t|":
        if len(names) == 1 and mark in names[0]:
            raise InputError(f"{path}: its columns are separated by {mark!r}; save it with commas")
    for name in needed:
        if name not in names:
            others = LABELS if name == "label" else [word for word, ours in SYNONYMS.items() if ours == name]
            same = [other for other in names if other.strip().lower() in others]
            close = same or difflib.get_close_matches(name, names, 1)
            hint = f" (is '{shown(close[0])}' meant?)" if close else ""
            raise InputError(f"{path}: needs a column '{name}'{hint}; {what}")
    check_names(names, path, known)


def check_names(names: Sequence[str], path: str, known: Sequence[str]) -> None:
    """InputError for a known column that is there twice, and for one that is known but for its spelling, or by another name: else nobody
    would miss it.
    """
    doubled = next((name for name in known if names.count(name) > 1), None)
    if doubled is not None:
        raise InputError(f"{path}: has more than one column '{doubled}'; keep one of them")
    for name in names:
        word = name.strip().lower()
        close = [SYNONYMS[word]] if word in SYNONYMS else difflib.get_close_matches(word, known, 1, 0.75)
        if name not in known and close and close[0] in known and close[0] not in names:
            raise InputError(
                f"{path}: column '{shown(name)}' is not known; is '{close[0]}' meant? (rename it, or take it out)"
            )


def number(line: Line, name: str, path: str) -> float | None:
    """A number of a line, None where it is empty or unknown; InputError where it is none, or a share outside 0 to 1."""
    text = known(line[1].get(name))
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = None
    if found is None or (math.isinf(found) and name in ("x", "y")):
        raise InputError(f"{path}:{line[0]}: {name} '{shown(text)}' is no number; leave it empty or correct it")
    if name == "tumour_fraction":
        check_fraction(found, name, f"{path}:{line[0]}")
    return found


def line_mpp(line: Line, path: str) -> float | None:
    """The mpp of a line, None where it says none; InputError where it is more than 5 % off 0.5."""
    found = number(line, "mpp", path)
    if found is not None:
        check_mpp(found, f"{path}:{line[0]}", "the tile")
    return found


def line_level(line: Line, declared: str | None, path: str) -> str:
    """The label level of a line, or what the spec says; InputError where neither says it."""
    level = line[1].get("label_level") or declared
    if level is None:
        raise InputError(
            f"{path}: has no column 'label_level'; add it, or write label_level: slide (or region, or tile) under embeddings"
        )
    if level not in LEVELS:
        raise InputError(
            f"{path}:{line[0]}: label_level '{shown(level)}' does not exist; it would be slide, region or tile"
        )
    return level


def line_label(line: Line, path: str) -> str:
    """The label of a line; InputError where it is empty."""
    label = line[1].get("label") or ""
    if not label:
        raise InputError(f"{path}:{line[0]}: has no label; fill it in, or take the line out")
    return label
