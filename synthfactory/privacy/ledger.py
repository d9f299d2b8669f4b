"""What each cohort has given away so far: LEDGER/<cohort>/000001.json, ... , each a charge and its release in one object.

An entry is created if absent, whole or not at all, and sealed. So a crash before it has spent nothing (the noise was never seen by anyone),
and a crash after it has kept what was bought: no release without a charge, none charged twice. Growth and rebuilds find the entry of
the same request and take its release again. The ledger is never published, and must outlive every set that rests on it.

What a request is follows from what was declared, never from rows. If an equal request were answered anew once the bank has changed, two
published sets' releases would tell, without noise, whether anybody had left in between, which no epsilon allows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from synthfactory.privacy.accountant import epsilon_together, over
from synthfactory.privacy.release import Release
from synthfactory.shards.seal import sealed, unsealed
from synthfactory.shards.store import Store
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from synthfactory.spec.names import slug

TRIES = 50  # others may charge the same cohort at the same moment


@dataclass(frozen=True)
class Request:
    """What is asked of a cohort. Equal requests are answered by one release, whatever the rows are by then, unless another is asked for.

    `bank_sha256` is of the rows that it was made from.
    """

    cohort: str
    classes: tuple[str, ...]
    epsilon: float
    delta: float
    projection_sha256: str
    bank_sha256: str = field(compare=False)
    # Of each class's rows; entries of earlier versions have none.
    rows_sha256: tuple[str, ...] = field(default=(), compare=False)

    def to_json(self) -> dict[str, Any]:
        """As an entry holds it."""
        return {**vars(self), "classes": list(self.classes), "rows_sha256": list(self.rows_sha256)}

    def shares_rows(self, other: Request) -> bool:
        """Whether the very rows of some class stand in both."""
        return self.bank_sha256 == other.bank_sha256 or not set(self.rows_sha256).isdisjoint(other.rows_sha256)


@dataclass(frozen=True)
class Entry:
    """One charge: which, what for, and what came of it."""

    number: int
    request: Request
    release: Release
    cap: float


class Ledger:
    """The entries of one cohort in a store."""

    def __init__(self, store: Store, cohort: str) -> None:
        self._store, self.cohort = store, cohort
        self._folder = f"{slug(cohort)}-{hashlib.sha256(cohort.encode()).hexdigest()[:8]}"

    def entries(self) -> list[Entry]:
        """All, in order. InputError where one is missing, changed, or not understood: a budget cannot be kept on such a ledger."""
        found: list[Entry] = []
        names = sorted(path for path, _ in self._store.entries(self._folder) if path.endswith(".json"))
        for number, path in enumerate(names, start=1):
            if path != self._path(number):
                raise InputError(f"ledger: {self._path(number)} is missing; the budget of '{self.cohort}' is not known")
            found.append(self._read(number))
        return found

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:06d}.json"

    def _read(self, number: int) -> Entry:
        try:
            values = unsealed(read_json(self._store.read(self._path(number))))
            asked = dict(values["request"])
            texts = {name: tuple(asked.get(name, ())) for name in ("classes", "rows_sha256")}
            request = Request(**{**asked, **texts})
            release, cap = Release.from_json(values["release"]), float(values["cap"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"ledger: {self._path(number)} was changed or is damaged ({error}); restore it, for the budget rests on it"
            ) from None
        if request.cohort != self.cohort:
            raise InputError(f"ledger: {self._path(number)} is of cohort '{request.cohort}', not '{self.cohort}'")
        return Entry(number, request, release, cap)

    def spent(self, delta: float) -> float:
        """The epsilon at this delta of everything released so far, together."""
        return epsilon_together([entry.release.sigma for entry in self.entries()], delta)

    def equal(self, request: Request) -> list[Entry]:
        """The entries of equal requests: releases 1, 2, ... of it."""
        return [entry for entry in self.entries() if entry.request == request]

    def check(self, request: Request, sigma: float, cap: float, number: int | None = None) -> Entry | None:
        """The entry that answers the request, the latest or release `number` of it; None where a release of this noise would be new, and
        may be made.

        InputError where it may not: `number` is not the next; the cohort's releases together, this one with them, are over the cap, at the
        smallest delta that any of them names (else a larger delta would buy what a smaller one refuses); or `cap` is above that of the
        cohort's first release.
        """
        return self._answer(self.entries(), request, sigma, cap, number)

    def _answer(
        self, known: Sequence[Entry], request: Request, sigma: float, cap: float, number: int | None
    ) -> Entry | None:
        equal = [entry for entry in known if entry.request == request]
        wanted = number or max(1, len(equal))
        if wanted <= len(equal):
            return equal[wanted - 1]
        if wanted > len(equal) + 1:
            raise InputError(
                f"release {wanted} of this request is asked for, and cohort '{self.cohort}' has {len(equal)} of it; the next is "
                f"{len(equal) + 1}"
            )
        fixed = min((entry.cap for entry in known), default=cap)
        if over(cap, fixed):
            raise InputError(
                f"cap {cap:g} of cohort '{self.cohort}' is above {fixed:g}, under which its patients were released before; a cap is not "
                "raised later"
            )
        delta = min([request.delta, *(entry.request.delta for entry in known)])
        before: Sequence[float] = [entry.release.sigma for entry in known]
        total = epsilon_together([*before, sigma], delta)
        if over(total, cap):
            raise InputError(
                f"cohort '{self.cohort}': {len(known)} releases have spent epsilon {epsilon_together(before, delta):.3g} at delta "
                f"{delta:g}; with this one it would be {total:.4g}, over the cap of {cap:g}; build from a release that is there (the same "
                "classes, epsilon, delta and projection)"
            )
        return None

    def charge(
        self, request: Request, sigma: float, cap: float, make: Callable[[], Release], number: int | None = None
    ) -> tuple[Entry, bool]:
        """(the entry that answers the request, whether it is new). `make` releases, with noise of this sigma; it is called only where
        `check` allows it, and what it made is thrown away unseen where another charge came first. InputError as `check`.
        """
        for _ in range(TRIES):
            known = (
                self.entries()
            )  # looked at once: what is added to it since takes the number, and all is looked at again
            found = self._answer(known, request, sigma, cap, number)
            if found is not None:
                return found, False
            last, made = len(known) + 1, make()
            values = sealed({"request": request.to_json(), "release": made.to_json(), "cap": cap})
            content = json.dumps(values, indent=1, sort_keys=True).encode()
            if self._store.create(self._path(last), content):
                return Entry(last, request, made, cap), True
        raise InputError(f"ledger: others charge '{self.cohort}' all the time; try again")


def cohorts(store: Store) -> list[str]:
    """Names of the cohorts that a ledger holds releases of. InputError where a first entry cannot be read."""
    found = []
    for path, _ in store.entries():
        if path.endswith("/000001.json"):
            try:
                found.append(str(unsealed(read_json(store.read(path)))["request"]["cohort"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise InputError(
                    f"ledger: {path} was changed or is damaged; restore it, for the budget rests on it"
                ) from None
    return sorted(found)


def lines(ledger: Ledger, delta: float) -> list[str]:
    """For people: a line for each charge, and what they come to."""
    entries = ledger.entries()
    found = [
        f"{entry.number:>3}  epsilon {entry.request.epsilon:g}, delta {entry.request.delta:g}, noise {entry.release.sigma:.4g}, "
        f"{len(entry.request.classes)} classes"
        for entry in entries
    ]
    return [*found, f"together: epsilon {math.ceil(1000 * ledger.spent(delta)) / 1000:g} at delta {delta:g}"]
