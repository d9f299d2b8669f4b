"""The release of a set under differential privacy: made once and charged, then taken from the ledger for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from synthfactory.embeddings.bank import Bank
from synthfactory.embeddings.columns import pieces
from synthfactory.privacy.accountant import sigma_for
from synthfactory.privacy.moments import Layout, Rows, summed
from synthfactory.privacy.projection import Projection
from synthfactory.privacy.release import Release, release
from synthfactory.run.keys import guard
from synthfactory.run.prepare import Prepared
from synthfactory.run.protecting import check_name, ledger_of, open_projection, refused, request_of
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError


def bank_rows(bank: Bank, classes: tuple[str, ...]) -> Iterator[Rows]:
    """(embeddings, class numbers, patients) of all rows of these classes, about 16 MB at a time."""
    for number, name in enumerate(classes):
        low, high = bank.span(name)
        patients, starts = bank.patients_of(name)
        for start, end in pieces(low, high, bank.vectors.row_bytes):
            owners = np.searchsorted(starts, np.arange(start - low, end - low), side="right") - 1
            yield bank.vectors.part(start, end), np.full(end - start, number), [patients[owner] for owner in owners]


def charged(prepared: Prepared) -> tuple[Release, Projection, bool]:
    """(release, its projection, whether it is new): made now, or that of an equal request. One that is new spends the cohort's budget.

    InputError where the cap refuses it.
    """
    spec, bank = prepared.spec, prepared.bank
    assert bank is not None and spec.privacy.ledger is not None
    projection = open_projection(spec, prepared.folder, prepared.facts)
    request = request_of(spec, projection, bank)
    classes, dimension = request.classes, projection.dimension

    def make() -> Release:
        total = summed(lambda: bank_rows(bank, classes), projection, Layout(len(classes), dimension))
        return release(total, projection, request.cohort, classes, request.epsilon, request.delta)

    guard(open_store(spec.privacy.ledger))
    check_name(spec, request)  # again: the plan may be old
    try:
        cap = float(spec.privacy.value("cap"))
        sigma = sigma_for(request.epsilon, request.delta)
        entry, new = ledger_of(spec).charge(request, sigma, cap, make, spec.privacy.release)
    except InputError as error:
        raise refused(spec, error) from None
    return entry.release, projection, new


def kept(prepared: Prepared, lock: Mapping[str, Any]) -> tuple[Release, Projection]:
    """The release that a set was begun with. InputError where the ledger does not hold it any more."""
    spec, says = prepared.spec, lock["recipe"]["privacy"]
    for entry in ledger_of(spec).entries():
        if entry.release.sha256 == says["release_sha256"]:
            return entry.release, open_projection(spec, prepared.folder, prepared.facts)
    raise spec.error(
        "privacy.ledger",
        f"{spec.privacy.ledger} holds no release {says['release_sha256'][:12]} of cohort {spec.privacy.cohort}, which "
        f"{spec.output.path} was begun with; name the ledger that does, or restore it",
    )


def stated(found: Release, projection: Projection) -> dict[str, str]:
    """What the recipe says of a release."""
    return {
        "release_sha256": found.sha256,
        "projection_sha256": projection.sha256,
        "provenance": projection.provenance,
    }
