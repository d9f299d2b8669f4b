"""How a build ended, and what it says at its end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from synthfactory.run.progress import duration
from synthfactory.spec.text import counted

ENOUGH = 100  # slots of a class, before anything is said of how many stay empty
MAX_SET_ASIDE = 3  # units in a row, none made between: then it is not the units that fail


@dataclass
class BuildResult:
    """How a build ended. `complete` is exit code 0; `to_go_on` 4 (the same command may get further), else 3 (some slots stay empty)."""

    tiles: int
    asked: int
    shards: int
    shortfall: int
    set_aside: dict[int, str] = field(default_factory=dict)
    short: Counter[int] = field(default_factory=Counter)  # shard -> how often its calls were too few
    out_of_budget: str | None = None  # the limit of the spec that leaves too little
    gave_up: bool = False
    faults: list[str] = field(default_factory=list)  # what the check at the end found of shards that were committed
    drawn: int = 0
    rejected: int = 0  # candidates
    rejects: Counter[str] = field(default_factory=Counter)  # their reasons, of which one candidate may have several
    slots: Counter[str] = field(default_factory=Counter)  # by class, of the units of this run
    empty: Counter[str] = field(default_factory=Counter)  # of them, those that no candidate filled
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # `condition`: the driver's own
    wall_seconds: float = 0.0
    network_calls: int = 0
    _told: set[str] = field(default_factory=set)

    def count(self, classes: Mapping[str, tuple[int, int]]) -> list[str]:
        """Adds a unit's (slots, empty) of each class; says, once a class, where more stay empty than are filled."""
        told = []
        for name, (slots, empty) in classes.items():
            self.slots[name] += slots
            self.empty[name] += empty
            if name not in self._told and self.slots[name] >= ENOUGH and 2 * self.empty[name] > self.slots[name]:
                self._told.add(name)
                told.append(
                    f"{name}: {self.empty[name]:,} of its first {self.slots[name]:,} tiles found no candidate that passes the screens, and "
                    "stay empty; more will, if it goes on so (Ctrl-C stops; synthfactory pilot shows why)"
                )
        return told

    @property
    def complete(self) -> bool:
        """Every slot filled and committed."""
        return self.tiles == self.asked and not self.to_go_on

    @property
    def to_go_on(self) -> bool:
        """Something was left that the same command may still make."""
        return bool(self.set_aside or self.out_of_budget or self.gave_up or self.faults)


def summary(result: BuildResult, where: str) -> list[str]:
    """What a build says at its end."""
    lines = [f"{result.tiles:,} of {result.asked:,} tiles in {counted(result.shards, 'shard')} in {where}"]
    if result.drawn:
        rate = result.drawn / max(result.wall_seconds, 1e-9)
        lines.append(
            f"{result.drawn:,} candidates drawn in {duration(result.wall_seconds)} ({rate:.2f} a second), {result.rejected:,} rejected"
        )
        lines.extend(f"  {count:,} {reason}" for reason, count in result.rejects.most_common())
    if result.shortfall:
        lines.append(
            f"{result.shortfall:,} tiles found no candidate within budget.max_attempts; they stay empty and are listed in the "
            "commits: ask for more of those classes, or build into a new output with other screens"
        )
        lines.extend(
            f"  {name}: {empty:,} of {result.slots[name]:,} drawn now"
            for name, empty in result.empty.most_common()
            if empty
        )
    if result.out_of_budget:
        lines.append(
            f"{result.out_of_budget} leaves too little for the next shard; raise it and run the same command to go on"
        )
    lines.extend(f"shard {shard:06d} was set aside: {message}" for shard, message in sorted(result.set_aside.items()))
    if result.gave_up:
        lines.append("shards failed one after another, and none was made between, so no more were drawn")
    lines.extend(f"damaged since it was committed: {fault}" for fault in result.faults)
    if result.set_aside or result.faults or result.gave_up:
        lines.append("once that is mended, the same command goes on")
    return lines
