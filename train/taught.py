"""Whom a run learnt from, noted in its folder, so that a run that builds on it can say where its own validation would flatter.

A run folder stays with who trained it; exports carry nothing of this. Names are hashed, so that the file is no list of patients, but
whoever has a list can look them up in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from synthfactory.spec.text import counted
from train.config import TrainConfig
from train.split import Split

TAUGHT = "taught.json"


def note(run: Path, config: TrainConfig, divided: Split) -> None:
    """Writes RUN/taught.json: patients of the tiles that this run learns from, and of the runs that it builds on."""
    patients = _hashed(divided.taught).union(*(_noted(parent) or () for parent in _parents(config).values()))
    temporary = run / f".tmp-{TAUGHT}"
    temporary.write_text(json.dumps({"format": 1, "patients": sorted(patients)}))
    temporary.replace(run / TAUGHT)


def flattering(config: TrainConfig, divided: Split) -> Iterator[str]:
    """Warnings of runs named in the config that learnt from patients who are held out here. Exports do not say whom they learnt from."""
    judged = _hashed(divided.judged)
    for field, parent in _parents(config).items() if judged else ():
        noted = _noted(parent)
        if noted is None:
            yield f"{field}: {parent} does not say whom it learnt from; hold the same patients out of every run"
        elif both := judged & noted:
            yield (
                f"{field}: {parent} learnt from {len(both):,} of the {counted(len(judged), 'patient')} that are held out here, so what "
                "is measured on them flatters; hold the same patients out of every run"
            )


def _parents(config: TrainConfig) -> dict[str, str]:
    named = {"encoder_run": config.encoder_run, "vae_run": config.vae_run}
    return {field: run for field, run in named.items() if run is not None}


def _noted(run: str) -> frozenset[str] | None:
    """None where a run does not say, or not in a form that is known."""
    try:
        found = json.loads((Path(run) / TAUGHT).read_text())
        return frozenset(map(str, found["patients"])) if found["format"] == 1 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hashed(names: frozenset[str]) -> frozenset[str]:
    return frozenset(hashlib.sha256(name.encode()).hexdigest()[:24] for name in names)
