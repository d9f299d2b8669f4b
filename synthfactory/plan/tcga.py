"""TCGA's studies: code, name, and how many cases there are, from `tcga.json`, which says where that is from."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("tcga.json")
PREFIX = "TCGA-"


@dataclass(frozen=True)
class Study:
    """A study of TCGA: its code (such as ACC), its name, and its number of cases."""

    code: str
    name: str
    cases: int


@cache
def studies() -> dict[str, Study]:
    """All 33 by code."""
    rows = json.loads(TABLE.read_bytes())["studies"]
    return {row["code"]: Study(row["code"], row["name"], row["cases"]) for row in rows}


@cache
def source() -> str:
    """Where the numbers of cases are from, in short, with its address."""
    said = json.loads(TABLE.read_bytes())["source"]
    return f"{said['short']}, {said['url']}"


def study_of(label: str) -> Study | None:
    """The study that a label names as its code, in any case, with or without TCGA- before it."""
    return studies().get(label.upper().removeprefix(PREFIX))


def near(label: str) -> list[Study]:
    """Up to three studies whose code or name is like a label."""
    text = label.upper().removeprefix(PREFIX)
    by_name = {study.name.upper(): study for study in studies().values()}
    found = difflib.get_close_matches(text, [*studies(), *by_name], 3, 0.5)
    return list(dict.fromkeys(studies().get(match) or by_name[match] for match in found))
