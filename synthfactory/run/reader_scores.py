"""From the answers of a reader study's readers, and its key, to figures. Nothing in either file is trusted."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from synthfactory.embeddings.rows import spelled
from synthfactory.evaluate.readers import (
    CANNOT_SAY,
    NO,
    NONE,
    REAL,
    SYNTHETIC,
    YES,
    Answers,
    Tiles,
    figure_json,
    kappa,
    measure,
)
from synthfactory.run.audit_tiles import report_place, write_report
from synthfactory.run.reader_study import FORMAT as KEY_FORMAT
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown

FORMAT = "synthfactory-reader-study/1"
INTERNAL = "These figures come from tiles of real patients, and are internal."
COLUMNS = ("tile", "real_or_synthetic", "label_right", "seconds", "reader", "page")
CALLED = {"": NONE, "synthetic": SYNTHETIC, "real": REAL}
LABELS = {"": NONE, "no": NO, "yes": YES, "cannot say": CANNOT_SAY}
MAX_BYTES = 4 << 20  # a key of the largest page has under 1 MB, answers less
MAX_READERS = 1000


@dataclass(frozen=True)
class _Sheet:
    """One reader's answers, a place a tile."""

    reader: str
    called: np.ndarray
    labels: np.ndarray
    seconds: np.ndarray

    @property
    def answers(self) -> bool:
        """Whether there is any."""
        return bool((self.called != NONE).any() or (self.labels != NONE).any())


def score(answers: Sequence[str], key_file: str, report: str | None) -> dict[str, Any]:
    """The figures of each reader and of all together, as `report.reader.render` takes them; written to `report` where that is given.

    InputError, naming file and line, for answers that no page writes, of another page, or of one reader twice.
    """
    key = _read_key(key_file)
    place = None if report is None else report_place(report, key["set"]["place"], form=FORMAT)
    compared = _compare_page(key, key_file)
    if len(answers) > MAX_READERS:
        raise InputError(f"--score: {len(answers):,} files; at most {MAX_READERS:,} are read at once")
    sheets: list[_Sheet] = []
    alike: list[tuple[str, str]] = []
    files: dict[str, str] = {}
    for path in answers:
        sheet = _read_answers(path, key)
        other = files.setdefault(spelled(sheet.reader), path)
        if other is not path:
            raise InputError(
                f"--score {path}: is of reader '{shown(sheet.reader)}', and so is {other}; give the answers of each reader once, or let "
                "each have a name of their own in column 'reader'"
            )
        same = next((at for at, each in enumerate(sheets) if _same(each, sheet)), None)
        if same is not None and not _timed(sheet):
            alike.append((sheets[same].reader, sheet.reader))
        elif same is not None:
            raise InputError(
                f"--score {path}: holds the very answers of {answers[same]}, and the same time for each: it is a copy under another name; "
                "give the answers of each reader once"
            )
        sheets.append(sheet)
    listed = key["tiles"]
    tiles = Tiles(
        np.array([each["real"] for each in listed]),
        np.array([each["class"] != each["shown"] for each in listed]),
        np.array([each["class"] for each in listed], np.str_),
        np.array([each["owner"] for each in listed]),
    )
    whole = Answers(*(np.stack([getattr(each, name) for each in sheets]) for name in ("called", "labels", "seconds")))
    marked = {"contaminated": key["contaminated"] is not None}
    there = np.array([sheet.answers for sheet in sheets])
    those = Answers(*(each[there] for each in (whole.called, whole.labels, whole.seconds)))
    found = {
        "format": FORMAT,
        "internal": INTERNAL,
        "set": key["set"],
        "contaminated": key["contaminated"],
        "page": {**key["page"], "compared": compared},
        "tiles": {
            "count": len(listed),
            "real": int(tiles.real.sum()),
            "synthetic": int((~tiles.real).sum()),
            "wrong": int(tiles.wrong.sum()),
        },
        "readers": [
            {"reader": sheet.reader, "file": path, **marked, **measure(tiles, whole.of(at)).to_json()}
            for at, (sheet, path) in enumerate(zip(sheets, answers, strict=True))
        ],
        "together": {**marked, "readers": int(there.sum()), **measure(tiles, those).to_json()}
        if there.sum() > 1
        else None,
        "alike": alike,
        "answered_nothing": [sheet.reader for sheet, some in zip(sheets, there.tolist(), strict=True) if not some],
        "agreement": {
            **marked,
            "called": figure_json(kappa(those.called, tiles.owners, (SYNTHETIC, REAL))),
            "label": figure_json(kappa(those.labels, tiles.owners, (NO, YES, CANNOT_SAY))),
        },
    }
    if place is not None:
        write_report(place, found)
    return found


def _same(one: _Sheet, other: _Sheet) -> bool:
    """Whether two readers gave the same answers in the same time, and any answers at all."""
    return one.answers and all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "seconds")
        for name in ("called", "labels", "seconds")
    )


def _timed(sheet: _Sheet) -> bool:
    """Whether times tell who answered: nobody takes the same tenth of a second as another for every tile."""
    return len(np.unique(sheet.seconds[np.isfinite(sheet.seconds)])) > 1


def _bytes(path: str, option: str, what: str) -> bytes:
    """A small local file, whole; InputError where there is none, or it is no such file."""
    place = Path(os.path.expanduser(path))
    try:
        if not place.is_file():  # nor a device or a pipe, which might never end
            raise InputError(f"{option} {path}: no such file; name {what}")
        with open(place, "rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{option} {path}: cannot be read ({shown(str(error))}); name {what}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{option} {path}: has over {MAX_BYTES >> 20} MB; name {what}")
    return data


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _read_key(path: str) -> dict[str, Any]:
    """InputError where it is no whole key."""
    what = "the FILE.key.json that was written with the page"
    data = _bytes(path, "--key", what)
    try:
        key = json.loads(data, parse_constant=_refused)
        if key["format"] != KEY_FORMAT:
            raise ValueError("another format")
        texts = [key["page"][name] for name in ("name", "sha256", "id")] + [
            key["set"][name] for name in ("name", "place")
        ]
        whole = all(isinstance(text, str) and "\0" not in text for text in texts) and bool(key["tiles"])
        for at, each in enumerate(key["tiles"], 1):
            whole &= type(each["tile"]) is int and each["tile"] == at and type(each["real"]) is bool
            whole &= type(each["owner"]) is int and 0 <= each["owner"] < 1 << 31
            whole &= isinstance(each["class"], str) and isinstance(each["shown"], str)
        given = key.setdefault("contaminated", None)  # keys of earlier versions do not say it
        if given is not None:
            whole &= all(type(given[name]) is int and 0 < given[name] < 1 << 31 for name in ("tiles", "patients"))
        sides = [
            Counter((each["class"], each["shown"]) for each in key["tiles"] if each["real"] is side)
            for side in (True, False)
        ]
        if not whole or sides[0] != sides[1]:  # each side shows the same labels, right and wrong, of the same classes
            raise ValueError("another form")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"--key {path}: is no key of a reader study, or damaged; name {what}") from None
    return {**key, "set": dict(key["set"]), "page": dict(key["page"])}


def _compare_page(key: dict[str, Any], key_file: str) -> bool:
    """Whether the page stands beside its key and is the very same; InputError where another one does."""
    name = key["page"]["name"]
    page = Path(os.path.expanduser(key_file)).parent / Path(name).name
    try:
        if not page.is_file():
            return False
        with open(page, "rb") as handle:
            digest = hashlib.sha256()
            while data := handle.read(1 << 20):
                digest.update(data)
    except (OSError, ValueError):
        return False
    if digest.hexdigest() != key["page"]["sha256"]:
        raise InputError(
            f"--key {key_file}: {shown(str(page), 240)} is not the page that this key was written with; bring both from one place"
        )
    return True


def _read_answers(path: str, key: dict[str, Any]) -> _Sheet:
    """InputError with the line for whatever the page would not have written. Tiles without a line count as not answered."""
    what = "what 'Download answers' saved"
    data = _bytes(path, "--score", what)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"--score {path}: is no CSV in UTF-8; name {what}") from None
    count = len(key["tiles"])
    sheet = _Sheet("", np.full(count, NONE, np.int8), np.full(count, NONE, np.int8), np.full(count, np.nan))
    reader, seen = "", dict[int, int]()
    semicolons = ";" in text.partition("\n")[0]  # as spreadsheets save where a comma is the decimal point
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=";" if semicolons else ",")
    try:
        header = [each.strip() for each in next(rows, [])]
        if sorted(header) != sorted(COLUMNS):
            raise InputError(f"{path}:1: the header is not {','.join(COLUMNS)}; name {what}")
        for row in rows:
            if not any(each.strip() for each in row):
                continue
            where = f"{path}:{rows.line_num}"
            if len(row) != len(COLUMNS):
                raise InputError(f"{where}: has {len(row)} values, but the header has {len(COLUMNS)}; name {what}")
            values = dict(zip(header, (each.strip() for each in row), strict=True))
            number, called, label, seconds, name, page = (values[column] for column in COLUMNS)
            if semicolons:
                number, seconds = number.replace(",", "."), seconds.replace(",", ".")
            if page != key["page"]["id"]:
                raise InputError(
                    f"{where}: is of page '{shown(page)}', but the key is of page '{shown(key['page']['id'])}'; take the key that was "
                    "written with that page"
                )
            tile = _number_of(number, count, where)
            if tile in seen:
                raise InputError(f"{where}: tile {tile} stands in line {seen[tile]} too; keep one line a tile")
            if reader and name != reader:
                raise InputError(
                    f"{where}: is of reader '{shown(name)}', and lines before are of '{shown(reader)}'; one file a reader"
                )
            seen[tile], reader = rows.line_num, name
            sheet.called[tile - 1] = _word(called, CALLED, "real_or_synthetic", where)
            sheet.labels[tile - 1] = _word(label, LABELS, "label_right", where)
            sheet.seconds[tile - 1] = _seconds(seconds, where)
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: is no CSV ({shown(str(error))}); name {what}") from None
    if not seen:
        raise InputError(f"{path}:1: holds no answer; name {what}")
    return _Sheet(reader or Path(path).stem, sheet.called, sheet.labels, sheet.seconds)


def _number_of(text: str, count: int, where: str) -> int:
    text = text.removesuffix(".0")
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= count):
        raise InputError(f"{where}: there is no tile '{shown(text)}'; the page has tiles 1 to {count}")
    return int(text)


def _word(text: str, words: dict[str, int], column: str, where: str) -> int:
    found = words.get(text.lower())
    if found is None:
        listed = ", ".join(word for word in words if word)
        raise InputError(f"{where}: {column} '{shown(text)}' is no answer; {listed}, or nothing")
    return found


def _seconds(text: str, where: str) -> float:
    if not text:
        return math.nan
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < 1e9:
        raise InputError(f"{where}: seconds '{shown(text)}' is no time; a number from 0, or nothing")
    return found
