"""Bags: which slots belong together, and whose tile conditions a slot of a bag. Pure, and O(1) a slot however many there are.

Slot i of a class is tile t = i mod size of bag b = i // size. Under mechanism none, bag b takes positions b m ... b m + m - 1 of the
class's order of P patients, its group; tile t follows the group's patient t mod m, who gives size / m tiles.

The order is a keyed shuffle of the P patients, gone through m / gcd(P, m) times before the next one. So a group that reaches over the end
of a pass begins the same order anew, and m <= P positions in a row hold m different patients; after the last of these passes a bag ends
where the order does. Where m divides P that is one pass: block p // P of position p is shuffled by itself, as in conditions.py. Every
patient is in one bag before any is in two, and position p is its patient's use number p // P. Hence the turn of their tile, and from it
the slot to which `choose` gives that very tile.
"""

from __future__ import annotations

import math

from synthfactory.plan.conditions import ClassIndex, choose, patient_at, slot_of
from synthfactory.spec.bags import Bags
from synthfactory.spec.names import slug


def bag_id(name: str, bags: Bags, class_name: str, slot_index: int) -> str:
    """NAME-CLASS-bag-NUMBER of the slot's bag: of the spec's name, the class and the index alone; lower case, without dots."""
    return f"{name}-{slug(class_name)}-bag-{slot_index // bags.size:06d}"


def member(index: ClassIndex, bags: Bags, slot_index: int, key: bytes, class_name: str) -> tuple[int, int]:
    """(the patient, as a number; the turn of their tile, 0 and up) of a slot. `bags.group` is at most the number of patients."""
    count, group = len(index.patients), bags.group
    bag, tile = divmod(slot_index, bags.size)
    use, place = divmod(bag * group + tile % group, count)
    passes = group // math.gcd(count, group)
    patient = patient_at(index, use - use % passes, place, key, class_name)
    return patient, use * (bags.size // group) + tile // group


def choose_in_bag(index: ClassIndex, bags: Bags, slot_index: int, key: bytes, class_name: str) -> int:
    """As `conditions.choose`, for a slot of a bag."""
    patient, turn = member(index, bags, slot_index, key, class_name)
    return choose(index, slot_of(index, patient, turn, key, class_name), key, class_name)


def most_of_patient(patients: int, bags: Bags, count: int) -> int:
    """Most tiles that one of so many patients has of the first `count` slots of a class."""
    group, each = bags.group, bags.size // bags.group
    full, rest = divmod(count, bags.size)
    whole = math.ceil(full * group / patients) * each
    begun = [(full * group + at) // patients * each + math.ceil((rest - at) / group) for at in range(min(group, rest))]
    return max([whole, *begun])
