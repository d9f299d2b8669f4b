"""Places of a spec that must not lie inside one another: what is published, what is internal, what is only read (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from synthfactory.spec.places import lies_inside, nested


class Read(NamedTuple):
    """A place that is only read: its spec path; whether it is a folder of real tiles, into which nothing of ours may come; whether it
    holds real data.
    """

    field: str
    place: str
    is_folder: bool = False
    is_real: bool = True


def nesting_problems(
    output: str, lineage: str, ledger: str | None, reads: Iterable[Read], **resolve: Any
) -> list[tuple[str, str]]:
    """(spec path, fault) of each place that lies where it would be published, or cleared away; `resolve` as in places.nested."""
    never = "lie inside one another; {} is never published, so give it a folder of its own"
    found = []
    if nested(lineage, output, **resolve):
        found.append(("lineage", "and output.path " + never.format("lineage")))
    if ledger is not None:
        if nested(ledger, output, **resolve):
            found.append(("privacy.ledger", "and output.path " + never.format("the ledger")))
        if nested(ledger, lineage, **resolve):
            found.append(
                (
                    "privacy.ledger",
                    "and lineage lie inside one another; a ledger outlives sets, so give it a folder of its own",
                )
            )
    for field, place, is_folder, is_real in reads:
        what = "keep real data apart" if is_real else "keep it apart"
        if is_folder and nested(place, output, **resolve):
            found.append(
                (field, "and output.path lie inside one another; keep real tiles apart from what is published")
            )
        elif lies_inside(place, output, **resolve):
            found.append((field, f"lies inside output.path; {what} from what is published"))
        elif is_folder and nested(place, lineage, **resolve):
            found.append(
                (field, "and lineage lie inside one another; keep real tiles apart from what builds write and clear")
            )
        elif is_real and lies_inside(place, lineage, **resolve):
            found.append((field, "lies inside lineage; keep real data apart from what builds write and clear"))
    return found
