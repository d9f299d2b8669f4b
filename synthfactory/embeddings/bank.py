"""A bank: the embeddings that may condition tiles, each with label, patient and slide, in one canonical order.

Rows are sorted by (label, patient, slide, embedding, level), so that the order of files changes nothing. What is kept of 100 million
rows is a table of groups (label, patient, slide) in memory, and two flat columns (embeddings, levels) that may lie in files.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from synthfactory.embeddings.columns import Column, pieces

LEVELS = ("region", "slide", "tile")  # in the order of their names, which is that of rows that differ in nothing else
MPP, MPP_TOLERANCE = 0.5, 0.05


@dataclass(frozen=True)
class Groups:
    """Runs of rows that share label, patient and slide, in canonical order: group g is rows starts[g] to starts[g + 1].

    None stands for an unknown patient, slide or site (tiles of several sites have none); `sites` is () where none is known.
    """

    labels: tuple[str, ...] = field(repr=False)
    patients: tuple[str | None, ...] = field(repr=False)
    slides: tuple[str | None, ...] = field(repr=False)
    starts: np.ndarray = field(repr=False)
    sites: tuple[str | None, ...] = field(default=(), repr=False)

    def of_label(self, label: str) -> range:
        """The groups of a label; empty where it has none."""
        low = _left(self.labels, label)
        high = low
        while high < len(self.labels) and self.labels[high] == label:
            high += 1
        return range(low, high)


def _left(ordered: Sequence[str], value: str) -> int:
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if ordered[middle] < value else (low, middle)
    return low


@dataclass(frozen=True)
class ClassFacts:
    """What plans and locks need to know of a class's rows.

    `levels` are those that occur; `sha256` covers all that is in the rows but their sites, `sites` those, '' where none is known.
    """

    levels: tuple[str, ...]
    sha256: str
    sites: str = ""


@dataclass(frozen=True)
class Bank:
    """Rows in canonical order; only those of the classes asked for. `rows_of`, `take` and `class_mac` read no more than they need."""

    vectors: Column = field(repr=False)  # float32 (N, E)
    levels: Column = field(repr=False)  # uint8 (N,): index in LEVELS
    groups: Groups = field(repr=False)
    encoder: Mapping[str, str]
    classes: Mapping[str, ClassFacts] = field(repr=False)
    warnings: tuple[str, ...] = ()
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # class -> screen -> rows it took

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def width(self) -> int:
        """Values in one embedding."""
        return self.vectors.shape[1]

    def span(self, class_name: str) -> tuple[int, int]:
        """(first row, row after the last) of a class."""
        groups = self.groups.of_label(class_name)
        return int(self.groups.starts[groups.start]), int(self.groups.starts[groups.stop])

    def patients_of(self, class_name: str) -> tuple[list[str], np.ndarray]:
        """(patients of a class in order, int64 offsets (P + 1,) of their rows within the class).

        Unknown ones are one patient, named ''.
        """
        names: list[str] = []
        counts: list[int] = []
        for group in self.groups.of_label(class_name):
            patient = self.groups.patients[group] or ""
            rows = int(self.groups.starts[group + 1] - self.groups.starts[group])
            if names and names[-1] == patient:
                counts[-1] += rows
            else:
                names.append(patient)
                counts.append(rows)
        return names, np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)

    def slides_of(self, class_name: str) -> np.ndarray:
        """int64 offsets (S + 1,) of the rows of each slide of each patient within the class; rows of no slide are one of their patient."""
        groups = self.groups.of_label(class_name)
        bounds = np.asarray(self.groups.starts[groups.start : groups.stop + 1], np.int64)
        return np.asarray(bounds - bounds[0])

    def strata_of(self, class_name: str) -> np.ndarray | None:
        """Of each patient of a class, in order, a number that those share whose slides are of the same sites, int64 (P,).

        None where all are alike. Patients with slides of two sites share a number of their own, and so do those of no known site.
        """
        if not self.groups.sites:
            return None
        patients, sites = self.groups.patients, self.groups.sites
        kinds = [
            tuple(sorted({site for group in own if (site := sites[group]) is not None}))
            for _, own in groupby(self.groups.of_label(class_name), key=lambda group: patients[group] or "")
        ]
        number = {kind: at for at, kind in enumerate(sorted(set(kinds)))}
        return np.array([number[kind] for kind in kinds], np.int64) if len(number) > 1 else None

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings of these rows of the bank, float32 (n, E), copied."""
        return np.asarray(self.vectors.take(rows), np.float32)

    def facts(self, rows: np.ndarray) -> list[tuple[str, str | None, str | None]]:
        """(label level, patient, slide) of each of these rows of the bank."""
        levels = self.levels.take(rows)
        groups = np.searchsorted(self.groups.starts, rows, side="right") - 1
        return [
            (LEVELS[level], self.groups.patients[group], self.groups.slides[group])
            for level, group in zip(levels.tolist(), groups.tolist(), strict=True)
        ]

    def class_mac(self, key: bytes, class_name: str, sites: bool = False) -> str:
        """HMAC-SHA256 (hex) over encoder and content of a class: says whether two are equal, and nothing else without the key.

        `sites`: whether the sites of its slides, where known, count as content.
        """
        facts = self.classes[class_name]
        head = {"encoder": dict(self.encoder), "label": class_name, "sha256": facts.sha256}
        if sites and facts.sites:
            head["sites"] = facts.sites
        return hmac.new(
            key, b"synthfactory-bank-2" + json.dumps(head, sort_keys=True).encode(), hashlib.sha256
        ).hexdigest()

    def mac(self, key: bytes) -> str:
        """As `class_mac`, of all classes."""
        macs = [self.class_mac(key, name) for name in sorted(self.classes)]
        return hmac.new(key, json.dumps(macs).encode(), hashlib.sha256).hexdigest()

    # The rows as plain columns, for tools and small banks: one Python object per row.

    @property
    def embeddings(self) -> np.ndarray:
        """float32 (N, E), mapped where it lies in a file."""
        return self.vectors.map()

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each row."""
        return self._spread(self.groups.labels)

    @property
    def patient_ids(self) -> tuple[str | None, ...]:
        """The patient of each row."""
        return self._spread(self.groups.patients)

    @property
    def slide_ids(self) -> tuple[str | None, ...]:
        """The slide of each row."""
        return self._spread(self.groups.slides)

    @property
    def sites(self) -> tuple[str | None, ...]:
        """The site of each row."""
        return self._spread(self.groups.sites or (None,) * len(self.groups.labels))

    @property
    def label_levels(self) -> tuple[str, ...]:
        """The label level of each row."""
        return tuple(LEVELS[level] for level in self.levels.map().tolist())

    def _spread(self, names: Sequence[Any]) -> tuple[Any, ...]:
        counts = np.diff(self.groups.starts).tolist()
        return tuple(name for name, count in zip(names, counts, strict=True) for _ in range(count))


def class_facts(vectors: Column, levels: Column, groups: Groups, class_name: str) -> ClassFacts:
    """Reads a class's rows once, in pieces."""
    digest = hashlib.sha256(json.dumps({"width": vectors.shape[1]}).encode())
    members = groups.of_label(class_name)
    for group in members:
        rows = int(groups.starts[group + 1] - groups.starts[group])
        digest.update(json.dumps([groups.patients[group], groups.slides[group], rows]).encode())
    low, high = int(groups.starts[members.start]), int(groups.starts[members.stop])
    present = np.zeros(len(LEVELS), np.int64)
    for start, end in pieces(low, high, levels.row_bytes):
        part = levels.part(start, end)
        present += np.bincount(part, minlength=len(LEVELS))
        digest.update(part.tobytes())
    for start, end in pieces(low, high, vectors.row_bytes):
        digest.update(np.ascontiguousarray(vectors.part(start, end), "<f4").tobytes())
    sites = [groups.sites[group] for group in members] if groups.sites else []
    stated = hashlib.sha256(json.dumps(sites).encode()).hexdigest() if any(sites) else ""
    return ClassFacts(tuple(LEVELS[number] for number in np.flatnonzero(present)), digest.hexdigest(), stated)
