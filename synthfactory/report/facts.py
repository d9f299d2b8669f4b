"""What card and Croissant say of a set, gathered from lock, rounds and commits: counts, shards, fingerprints, terms.

Public facts only; and a function of its arguments: no clock, no host, no path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synthfactory.shards.commit import Commit
from synthfactory.shards.record import EXTENSIONS

PRIVACY = (
    "each tile was conditioned on one real tile's embedding; no privacy guarantee is given; "
    "treat as personal data where the bank came from patients"
)
MIME = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
_SIZES = ((10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M"), (10**8, "100M"), (10**9, "1B"))
_SIZES_ABOVE = ((10**10, "10B"), (10**11, "100B"), (10**12, "1T"))


@dataclass(frozen=True)
class ClassCount:
    """Tiles of one class: asked for, made, and given up after every attempt."""

    name: str
    class_index: int
    asked: int
    made: int
    shortfall: int


@dataclass(frozen=True)
class Execution:
    """One kind of machine and software, and what it made."""

    fingerprint: dict[str, Any]
    shards: int
    tiles: int


@dataclass(frozen=True)
class Facts:
    """The counts; `tile_size_px` is one side."""

    classes: tuple[ClassCount, ...]
    shards_asked: int
    shards_made: int
    executions: tuple[Execution, ...]

    @property
    def asked(self) -> int:
        """Tiles that all rounds ask for."""
        return sum(item.asked for item in self.classes)

    @property
    def made(self) -> int:
        """Published tiles."""
        return sum(item.made for item in self.classes)

    @property
    def shortfall(self) -> int:
        """Tiles that no attempt gave."""
        return sum(item.shortfall for item in self.classes)

    @property
    def pending(self) -> int:
        """Tiles of shards that are not committed yet."""
        return self.asked - self.made - self.shortfall


def gather(lock: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], commits: Mapping[int, Commit]) -> Facts:
    """The facts of a set, complete or not; classes in order of their index, fingerprints in order of their first shard."""
    asked, made, missing = Counter[str](), Counter[str](), Counter[str]()
    for step in rounds:
        asked.update({name: high - low for name, (low, high) in step["ranges"].items()})
    executions: list[Execution] = []
    for _, commit in sorted(commits.items()):
        made.update(commit.classes)
        missing.update({name: len(indices) for name, indices in commit.shortfall.items()})
        _count(executions, commit)
    return Facts(
        tuple(
            ClassCount(str(name), int(entry["class_index"]), asked[name], made[name], missing[name])
            for entry in sorted(lock["classes"], key=lambda entry: int(entry["class_index"]))
            for name in (entry["name"],)
        ),
        sum(int(step["num_shards"]) for step in rounds),
        len(commits),
        tuple(executions),
    )


def _count(executions: list[Execution], commit: Commit) -> None:
    fingerprint = dict(commit.body["fingerprint"])
    for number, known in enumerate(executions):
        if known.fingerprint == fingerprint:
            executions[number] = Execution(fingerprint, known.shards + 1, known.tiles + commit.tiles)
            return
    executions.append(Execution(fingerprint, 1, commit.tiles))


def size_category(tiles: int) -> str:
    """The Hub's name for a number of examples, such as 10K<n<100K."""
    steps = (*_SIZES, *_SIZES_ABOVE)
    below = ""
    for limit, name in steps:
        if tiles < limit:
            return f"{below}<n<{name}" if below else f"n<{name}"
        below = name
    return f"n>{below}"


def image_format(lock: Mapping[str, Any]) -> tuple[str, str]:
    """(format, the extension of its members)."""
    name = str(lock["recipe"]["format"])
    return name, EXTENSIONS.get(name, name)


def label_levels(lock: Mapping[str, Any]) -> str:
    """The levels that labels were given to, joined by 'or'."""
    return " or ".join(str(level) for level in lock.get("label_levels", ())) or "unknown"


def terms(lock: Mapping[str, Any]) -> tuple[str, bool]:
    """(name of the model's terms, whether they are recorded to allow sharing what was made with it)."""
    licence = lock["model"].get("licence") or {}
    return str(licence.get("name") or "not stated"), licence.get("sharing") == "allowed"
