"""Which real tiles a reader study shows, and which labels are wrong on purpose: by a secret key, so that nothing tells the sides apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from synthfactory.embeddings.tiles import TileFolder
from synthfactory.plan.keyed import entry
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import shown

WRONG_EVERY = 4  # one label in so many is wrong


def quotas_of(per_side: int, room: Mapping[str, int]) -> dict[str, int]:
    """Tiles a class, as even as there is room for, and `per_side` in all where there is; classes that get none are left out."""
    found = dict.fromkeys(room, 0)
    for _ in range(per_side):
        open_ = [name for name in found if found[name] < room[name]]
        if not open_:
            break
        found[min(open_, key=lambda name: found[name])] += 1
    return {name: count for name, count in found.items() if count}


def choose_real(
    secret: bytes, tiles: TileFolder, quotas: Mapping[str, int], looks: Callable[[int], bytes]
) -> tuple[list[int], list[int]]:
    """(rows, owners) class by class, `quotas` of each, of as many patients as can be, no two of which look the same: a picture that is
    seen twice is real.

    Where a patient is not known the slide stands for one, else the tile itself. InputError where too few differ.
    """
    owners, numbers = list[int](), dict[tuple[str, Any], int]()
    for row, (patient, slide) in enumerate(zip(tiles.patient_ids, tiles.slide_ids, strict=True)):
        who = ("patient", patient) if patient else ("slide", slide) if slide else ("tile", row)
        owners.append(numbers.setdefault(who, len(numbers)))
    rows_of: dict[str, dict[int, list[int]]] = {
        name: {} for name in quotas
    }  # class -> owner -> rows, both in secret order
    listed: dict[str, list[int]] = {name: [] for name in quotas}
    for row, label in enumerate(tiles.labels):
        if label in listed:
            listed[label].append(row)
    for label, all_rows in listed.items():
        for position in range(len(all_rows)):
            row = all_rows[entry(secret, f"real/{label}", len(all_rows), position)]
            rows_of[label].setdefault(owners[row], []).append(row)
        people = list(rows_of[label])  # as their tiles came: those of many tiles first
        order = [people[entry(secret, f"owner/{label}", len(people), position)] for position in range(len(people))]
        rows_of[label] = {owner: rows_of[label][owner] for owner in order}
    class_of = match(quotas, {label: list(found) for label, found in rows_of.items()})
    rows, seen = list[int](), set[bytes]()
    for label, found in rows_of.items():
        own = [owner for owner, name in class_of.items() if name == label]
        # More than one of a patient only where there are no more patients: then those of the class in turn.
        turns = zip_longest(*found.values())
        rest = [row for turn in turns for row in turn if row is not None]
        differ = list[int]()
        for row in dict.fromkeys([*(found[owner][0] for owner in own), *rest]):
            if len(differ) == quotas[label]:
                break
            if (look := looks(row)) not in seen:
                seen.add(look)
                differ.append(row)
        if len(differ) < quotas[label]:
            raise InputError(
                f"--real: {shown(label)} has {len(differ):,} tiles that differ, and {quotas[label]:,} are to be shown; the rest are "
                "copies: take them out, or ask for fewer with -n"
            )
        rows += differ
    return rows, [owners[row] for row in rows]


def match(quotas: Mapping[str, int], owners: Mapping[str, Sequence[int]]) -> dict[int, str]:
    """Owner -> the one class whose tile is taken of them, so that as many as can be are of different owners (augmenting paths)."""
    taken: dict[int, str] = {}
    members = {label: set(listed) for label, listed in owners.items()}
    free = {label: iter(listed) for label, listed in owners.items()}

    def give(label: str, seen: set[str]) -> bool:
        seen.add(label)
        for owner in free[label]:
            if owner not in taken:
                taken[owner] = label
                return True
        for owner, other in list(taken.items()):
            if other not in seen and owner in members[label] and give(other, seen):
                taken[owner] = label  # the other class has another owner now
                return True
        return False

    for label, quota in quotas.items():
        for _ in range(quota):
            if not give(label, set()):
                break
    return taken


def wrong_labels(secret: bytes, names: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The label to show with each tile of a side, whose tiles stand class by class: a fourth of them is another class's, if there is
    another, taken from the classes in turn, in a secret order.

    Both sides show the same ones, so that they tell nothing.
    """
    found = list(labels)
    if len(names) < 2:
        return found
    places = {name: [at for at, label in enumerate(labels) if label == name] for name in names}
    turns = [names[entry(secret, "wrong", len(names), rank)] for rank in range(len(names))]
    each = [
        [places[name][entry(secret, f"wrong-at/{name}", len(places[name]), rank)] for rank in range(len(places[name]))]
        for name in turns
    ]
    chosen = [at for turn in zip_longest(*each) for at in turn if at is not None][: len(labels) // WRONG_EVERY]
    for number, at in enumerate(chosen):
        others = [name for name in names if name != labels[at]]
        found[at] = others[entry(secret, f"wrong/{labels[at]}", len(others), number % len(others))]
    return found
