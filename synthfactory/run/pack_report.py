"""What `synthfactory pack` says of the tiles that it packed, from the shards and what stands beside them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from synthfactory.embeddings.rows import two_spellings
from synthfactory.shards.base import Store
from synthfactory.shards.commit import Commit, list_commits
from synthfactory.shards.real import side_path, side_rows
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import counted, shown

BLANK_BELOW = 0.05  # share of tissue
UNLIKE = 0.5  # shares of JPEG in two classes


@dataclass
class PackReport:
    """What was packed, and what a user should know of it. Keys, never file names."""

    tiles: int
    shards: int
    classes: dict[str, int]
    patients: dict[str, int]  # of each class
    unknown_patients: dict[str, int]  # tiles of each class
    duplicates: list[list[str]]  # keys of tiles with the very same picture
    across: int = 0  # of the duplicates: groups of more than one label or patient
    blank: list[str] = field(default_factory=list)
    lossy: dict[str, int] = field(default_factory=dict)  # JPEG tiles of each class
    alike: tuple[str, str] | None = None  # two spellings that may be one patient's
    converted: int = 0
    described: int = 0  # tiles whose files hold more than pixels and colours


def read_patients(store: Store, commit: Commit) -> list[dict[str, Any]]:
    """What is known of a packed shard's tiles, in the tar's order. InputError where it is missing or damaged."""
    path = side_path(commit.shard, str(commit.body["tar"]["sha256"]))
    rows = side_rows(store, path)
    if len(rows) != commit.tiles:
        raise InputError(f"{store.place}/{path}: has {len(rows)} rows for {commit.tiles} tiles; pack the tiles anew")
    return rows


def report_of(store: Store, shards: int) -> PackReport:
    """What the packed shards and what stands beside them say. InputError where that is missing or damaged."""
    classes, unknown, lossy = Counter[str](), Counter[str](), Counter[str]()
    patients: dict[str, set[str]] = defaultdict(set)
    alike: dict[bytes, list[tuple[str, str, str | None]]] = defaultdict(list)
    found = PackReport(0, shards, {}, {}, {}, [])
    for commit in list_commits(store).values():
        for row in read_patients(store, commit):
            found.tiles += 1
            classes[row["label"]] += 1
            if row["patient_id"] is None:
                unknown[row["label"]] += 1
            else:
                patients[row["label"]].add(row["patient_id"])
            seen = bytes.fromhex(row["pixels_sha256"] or row["image_sha256"])
            alike[seen].append((row["key"], row["label"], row["patient_id"]))
            if row["tissue"] < BLANK_BELOW:
                found.blank.append(row["key"])
            lossy[row["label"]] += row["format"] == "jpeg"
            found.converted += row["converted"]
            found.described += row["described"]
    groups = [rows for rows in alike.values() if len(rows) > 1]
    found.duplicates = [sorted(key for key, _, _ in rows) for rows in groups]
    found.across = sum(len({(label, patient) for _, label, patient in rows}) > 1 for rows in groups)
    found.classes = dict(sorted(classes.items()))
    found.patients = {name: len(patients[name]) for name in found.classes}
    found.unknown_patients = dict(sorted(unknown.items()))
    found.lossy = {name: lossy[name] for name in found.classes if lossy[name]}
    found.alike = two_spellings(name for names in patients.values() for name in names)
    return found


def render(report: PackReport, out: str) -> Sequence[str]:
    """The report in lines."""
    lines = [f"{counted(report.tiles, 'tile')} in {counted(report.shards, 'shard')} in {out}"]
    longest = max(map(len, report.classes))
    lines.append(f"{'class':<{longest}} {'tiles':>8} {'patients':>8} {'of unknown patients':>20}")
    for name, count in report.classes.items():
        lines.append(
            f"{name:<{longest}} {count:>8,} {report.patients[name]:>8,} {report.unknown_patients.get(name, 0):>20,}"
        )
    if report.duplicates:
        extra = sum(len(keys) - 1 for keys in report.duplicates)
        across = f", in {counted(report.across, 'group')} of more than one label or patient" if report.across else ""
        lines.append(f"the very same picture again: {counted(extra, 'tile')}{across} ({_some(report.duplicates[0])})")
    if report.blank:
        lines.append(
            f"nearly blank (tissue below {BLANK_BELOW:.0%}): {counted(len(report.blank), 'tile')} ({_some(report.blank)})"
        )
    if report.lossy:
        lines.append(f"JPEG: {counted(sum(report.lossy.values()), 'tile')}; a model learns its artefacts too")
        shares = {name: report.lossy.get(name, 0) / count for name, count in report.classes.items()}
        most, least = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
        if shares[most] - shares[least] >= UNLIKE:
            lines.append(
                f"JPEG tells the class: {shares[most]:.0%} of {shown(most)}, {shares[least]:.0%} of {shown(least)}; save all of them alike"
            )
    if report.alike:
        names = " and ".join(shown(json.dumps(name, ensure_ascii=False)) for name in report.alike)
        lines.append(f"{names} count as two patients; if they are one, spell one person one way")
    if report.converted:
        lines.append(
            f"no plain RGB PNG, WebP or JPEG: {counted(report.converted, 'tile')}, packed as PNG of the same colours (what is "
            "transparent is not kept)"
        )
    if report.described:
        lines.append(
            f"more than pixels in the image file (text, EXIF, private data): {counted(report.described, 'tile')}, kept as it is; look "
            "whether it names anybody"
        )
    return lines


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
