"""The screen `nearest_real`: its threshold from real tiles of other patients, and the bank's directions where workers find them."""

from __future__ import annotations

import hashlib

import numpy as np

from synthfactory.embeddings.bank import Bank
from synthfactory.embeddings.columns import pieces
from synthfactory.embeddings.parquet import load_bank
from synthfactory.embeddings.rows import spelled
from synthfactory.embeddings.vectors import unit
from synthfactory.plan.recipe import ModelFacts
from synthfactory.run.source import scratch_cache
from synthfactory.screen.nearest import Nearest, highest
from synthfactory.shards.store import Store
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec

MOST_BYTES = 2 << 30  # of the bank's directions: every worker holds them
MOST_HELD_OUT = 20_000  # rows, evenly spaced, that the threshold rests on
FEWEST_HELD_OUT = 200


def open_holdout(spec: Spec, facts: ModelFacts) -> Bank | None:
    """The bank of other patients' tiles; None without the screen. InputError where it cannot set a threshold."""
    screen = spec.screen.nearest_real
    if screen is None:
        return None
    try:
        found = load_bank(
            screen.holdout, width=facts.condition_width, encoder=facts.encoder, classes=None, mpp=spec.embeddings.mpp,
            extent=facts.tile_size_px, cache=scratch_cache(spec.lineage),
        )  # fmt: skip
        needed = max(FEWEST_HELD_OUT, round(2 / (1 - screen.percentile / 100)))
        if len(found) < needed:
            raise InputError(
                f"{screen.holdout}: has {len(found):,} rows; percentile {screen.percentile:g} needs {needed:,}"
            )
        if found.groups.patients.count(None):
            raise InputError(
                f"{screen.holdout}: has rows that name no patient, who may be in the bank; give each a patient_id"
            )
    except InputError as error:
        raise spec.error("screen.nearest_real.holdout", str(error)) from None
    return found


def check_apart(spec: Spec, holdout: Bank | None, bank: Bank | None) -> None:
    """InputError where bank and holdout share patients, or the bank is more than workers can hold."""
    if holdout is None or bank is None:
        return
    of_bank = {spelled(name) for name in bank.groups.patients if name is not None}
    both = {name for name in map(spelled, filter(None, holdout.groups.patients)) if name in of_bank}
    if both:
        raise spec.error(
            "screen.nearest_real.holdout",
            f"shares {len(both)} patient{'s' * (len(both) != 1)} with the bank; the threshold must come from others",
        )
    size = len(bank) * bank.width * 4
    if size > MOST_BYTES:
        raise spec.error(
            "screen.nearest_real",
            f"every worker would hold {size / 2**30:.1f} GiB of the bank's embeddings, more than {MOST_BYTES >> 30}; leave it out, and "
            "look for copies by `synthfactory audit`",
        )


def laid_out(spec: Spec, bank: Bank, holdout: Bank, key: bytes, lineage: Store) -> str:
    """LINEAGE's path of the screen's data, made unless it stands: a threshold once taken stays, whoever leaves the holdout."""
    assert spec.screen.nearest_real is not None
    known = hashlib.sha256(f"{bank.mac(key)}:{spec.screen.nearest_real.percentile}".encode())
    path = f"privacy/nearest-{known.hexdigest()[:24]}.bin"
    if lineage.size(path) is None:
        rows = np.concatenate(
            [unit(bank.vectors.part(low, high)) for low, high in pieces(0, len(bank), bank.vectors.row_bytes)]
        )
        at = np.unique(np.linspace(0, len(holdout) - 1, min(len(holdout), MOST_HELD_OUT)).astype(np.int64))
        found = highest(unit(holdout.take(at)), (rows[low : low + 16_384] for low in range(0, len(rows), 16_384)))
        threshold = float(np.percentile(found, spec.screen.nearest_real.percentile))
        lineage.create(path, Nearest(rows, threshold).to_bytes())
    return path
