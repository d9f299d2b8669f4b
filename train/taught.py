"""Whom a run learnt from, noted in its folder, so that a run that builds on it can say where its own validation would flatter.

A run folder stays with who trained it; exports carry nothing of this. Names are hashed, so that the file is no list of patients, but
whoever has a list can look them up in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from synthfactory.model.taught import TAUGHT, Taught, hashed, read_taught
from synthfactory.shards.beside import beside
from synthfactory.spec.errors import InputError
from train.config import ShardSet, TrainConfig
from train.split import Split, behind, people


def note(run: Path, config: TrainConfig, divided: Split, *, resumed: bool) -> None:
    """Writes RUN/taught.json: patients of the tiles that this run learns from, and of the runs whose networks it learns from. Who stands
    there as it is `resumed` stays: a parent may have lost its own note since.
    """
    known = [_of_data(config, divided), *(read_taught(Path(parent)) for parent in _parents(config).values())]
    before = read_taught(run) if resumed else None
    patients = frozenset[str]().union(*(one.patients for one in (*known, before) if one is not None))
    complete = all(one is not None and one.complete for one in known) and (before is None or before.complete)
    with beside(run / TAUGHT) as new:
        new.write_text(json.dumps({"format": 1, "complete": complete, "patients": sorted(patients)}))


def flattering(config: TrainConfig, divided: Split) -> Iterator[str]:
    """Warnings of runs named in the config that learnt, or may have learnt, from patients who are held out here. Exports do not say whom
    they learnt from.
    """
    if config.data.validation is None or not len(divided.validation):
        return
    apart = [entry.lineage for entry in config.data.validation.shards or [] if entry.lineage]
    judged = hashed(people(divided.index, divided.validation).union(*(divided.rests[lineage] for lineage in apart)))
    for field, parent in _parents(config).items():
        noted = read_taught(Path(parent))
        both = judged & noted.patients if noted is not None else frozenset()
        if both:
            yield (
                f"{field}: {parent} learnt from {len(both):,} of {len(judged):,} patients held out here, so what is measured on them "
                "flatters; hold the same patients out of every run"
            )
        elif noted is None or not noted.complete:
            yield (
                f"{field}: {parent} does not say of all tiles whom it learnt from, so what is measured here may flatter; hold the same "
                "patients out of every run"
            )


def _of_data(config: TrainConfig, divided: Split) -> Taught:
    index, rows = divided.index, divided.train
    patients, complete = people(index, rows), bool((index.synthetic | (index.patients >= 0))[rows].all())
    for number, entry in enumerate(config.data.shards):
        found = _behind(entry, divided) if index.synthetic[rows[index.sets[rows] == number]].any() else frozenset()
        patients, complete = patients | (found or frozenset()), complete and found is not None
    return Taught(hashed(patients), complete)


def _behind(entry: ShardSet, divided: Split) -> frozenset[str] | None:
    """None where nobody can say: no lineage is named, or it is gone, which stops no run that holds nobody out."""
    if entry.lineage is None or entry.lineage in divided.rests:
        return divided.rests.get(entry.lineage or "")
    try:
        return behind(entry)
    except (InputError, OSError):
        return None


def _parents(config: TrainConfig) -> dict[str, str]:
    """Runs whose networks teach this one, or stand in what it makes, by the field that names them; others are named in vain."""
    compares = config.mode == "vae" and config.vae.perceptual != 0 and config.vae.features == "encoder"
    named = {
        "encoder_run": config.encoder_run if compares or config.mode not in ("encoder", "vae") else None,
        "vae_run": config.vae_run if config.base is None and config.mode in ("diffusion", "repa-e") else None,
    }
    return {field: run for field, run in named.items() if run is not None}
