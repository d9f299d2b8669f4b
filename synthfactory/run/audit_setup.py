"""From what `synthfactory audit` was asked for to a written report: the set, its encoder, its mechanism, and what was attacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthfactory.embeddings.rows import spelled
from synthfactory.model.encoder import EncoderFolder, encoder_of, open_encoder
from synthfactory.model.folder import BUILT_IN, open_model
from synthfactory.model.weights import load_encoder
from synthfactory.report.facts import rests_on_patients, tiles_sha256
from synthfactory.run.audit_tiles import (
    Source,
    Tick,
    check_apart,
    has_patterns,
    open_drawn,
    open_source,
    report_place,
    write_report,
)
from synthfactory.run.auditing import FORMAT, NO_PROOF, SEED, Audit, Mechanism, lock_sha256
from synthfactory.run.driver import check_output
from synthfactory.run.people import NOBODY, check_rests, resting
from synthfactory.run.prepare import Standing, read_standing
from synthfactory.run.progress import Progress
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.hubname import repo_of
from synthfactory.spec.text import counted, shown, without_secrets


@dataclass(frozen=True)
class Asked:
    """The command's arguments."""

    out: str
    members: str
    holdout: str
    encoder: str | None = None
    encoder_id: str | None = None
    model: str | None = None
    mechanism: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    report: str = "audit.json"
    lineage: str | None = None


def audited(asked: Asked, say: Callable[[str], None]) -> dict[str, Any]:
    """The report, written to its place. InputError for what cannot be audited; UnfitError, and nothing written, where a control fails."""
    place = report_place(asked.report, asked.out, form=FORMAT)
    standing = read_standing(asked.out)
    lock = standing.lock
    if lock is None:
        raise InputError(f"{asked.out}: holds no set (no {LOCK}); name the output.path of a build")
    mechanism = mechanism_of(lock, asked)
    folder = fitting_encoder(lock, asked.out, asked.encoder, asked.encoder_id, asked.model)
    check_whole(asked.out, standing)
    embed = load_encoder(folder).embed
    steps = Steps(say)
    try:
        sources = [
            open_source(given, option, folder, embed, steps.begin)
            for option, given in (("--members", asked.members), ("--holdout", asked.holdout))
        ]
        check_apart(*sources)
        of_the_set = rows = None
        if asked.lineage is not None:
            rows, of_the_set = _behind(standing, asked.lineage, sources[0], sources[1])
        count = sum(commit.tiles for commit in standing.commits.values())
        tick = steps.begin(f"{asked.out}: {count:,} tiles to embed with {folder.id}", count)
        drawn = open_drawn(asked.out, standing.store, folder, embed, tick)
        audit = Audit(drawn, sources[0], sources[1], embed, folder.image_size_px, mechanism, steps.begin, rows)
        figures = audit.run()
    finally:
        steps.close()
    found = {
        "format": FORMAT,
        "internal": f"Names tiles of real patients, and is not covered by any epsilon: never published. {NO_PROOF}",
        "set": {
            "place": without_secrets(asked.out), "name": lock["name"],
            "lock_sha256": lock_sha256(standing.store.read(LOCK, through_links=True)),
            "tiles": len(drawn.keys), "tiles_sha256": tiles_sha256(standing.commits), "classes": sorted(set(drawn.drawn.classes.tolist())),
        },
        "members": {**_described(sources[0] if rows is None else sources[0].of(rows)), "of_the_set": of_the_set},
        "holdout": _described(sources[1]),
        "encoder": _independence(lock, folder),
        "mechanism": vars(mechanism),
        "seed": SEED,
        **figures,
    }  # fmt: skip
    found["not_measured"] = _not_measured(found, audit, lock)
    write_report(place, found)
    return found


def _behind(standing: Standing, lineage: str, members: Source, holdout: Source) -> tuple[np.ndarray, dict[str, int]]:
    """(rows of the members on whom published tiles rest, by class, how many patients those are and how many of them were found).
    InputError where there are none, and where tiles rest on patients of the holdout: members on both sides look like nobody's.
    """
    check_rests(standing)
    tiles = resting(standing, open_store(lineage, reading=True))
    nameless = sum(counts[NOBODY] for counts in tiles.values() if NOBODY in counts)
    behind = {name: set(counts) - {NOBODY} for name, counts in tiles.items()}
    names = [spelled(name) for name in members.real.patients.tolist()]
    there = [name in behind.get(label, ()) for name, label in zip(names, members.real.classes.tolist(), strict=True)]
    found = {name for name, is_there in zip(names, there, strict=True) if is_there}
    every = set[str]().union(*behind.values())
    if not found:
        raise InputError(
            f"--members: {members.place}: has none of the {len(every):,} patients that the set rests on, by --lineage; name the tiles that "
            "it was made from"
        )
    both = sorted({name for name in holdout.real.patients.tolist() if spelled(name) in every})
    if both:
        raise InputError(
            f"--holdout: {holdout.place}: tiles of the set rest on {len(both):,} of its patients, such as '{shown(both[0])}'; "
            "name patients of whom nothing was drawn"
        )
    unknown = {"tiles_of_nobody": nameless} if nameless else {}
    return np.flatnonzero(there), {"patients": len(every), "found": len(found), **unknown}


class Steps:
    """Progress of one step after the other."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._progress = say, Progress(0, say=say, screened=False)

    def begin(self, what: str, total: int) -> Tick:
        """Says what begins; the tick takes what is done."""
        self._progress.close()
        self._say(what)
        self._progress = progress = Progress(total, say=self._say, screened=False)
        return lambda count: progress.tick(count, 0)

    def close(self) -> None:
        """Ends the last one."""
        self._progress.close()


def mechanism_of(lock: Mapping[str, Any], asked: Asked) -> Mechanism:
    """As the lock's recipe says (a lock without it: none), or as the options do where it says none. InputError where they disagree."""
    stated = lock["recipe"].get("privacy") or {}
    name = str(stated.get("mechanism", "none"))
    if asked.mechanism is None:
        if asked.epsilon is not None or asked.delta is not None:
            raise InputError("--epsilon, --delta: go with --mechanism dp; add it, or leave them out")
        return Mechanism(name, stated.get("epsilon"), stated.get("delta"))
    if name != "none" and name != asked.mechanism:
        raise InputError(f"--mechanism {asked.mechanism}: {asked.out}/{LOCK} says {name}; leave the option out")
    epsilon = asked.epsilon if asked.epsilon is not None else stated.get("epsilon")
    delta = asked.delta if asked.delta is not None else stated.get("delta")
    if asked.mechanism != "dp":
        if asked.epsilon is not None or asked.delta is not None:
            raise InputError(
                f"--mechanism {asked.mechanism}: has neither epsilon nor delta; leave --epsilon and --delta out"
            )
        return Mechanism(asked.mechanism)
    if epsilon is None or delta is None:
        raise InputError("--mechanism dp: needs --epsilon and --delta, what it promises")
    for key, value in (("epsilon", epsilon), ("delta", delta)):
        if name == "dp" and stated.get(key) not in (None, value):
            raise InputError(f"--{key} {value:g}: {asked.out}/{LOCK} says {stated[key]:g}; leave the option out")
    return Mechanism("dp", float(epsilon), float(delta))


def fitting_encoder(
    lock: Mapping[str, Any], out: str, encoder: str | None, encoder_id: str | None, model_name: str | None
) -> EncoderFolder:
    """The encoder to look with, by the options of that name. InputError where it is of another size than the tiles of the set `out`."""
    folder = encoder_for(lock, out, encoder, encoder_id, model_name)
    tile_px = int(lock["model"]["tile_size_px"])
    if folder.image_size_px != tile_px:
        raise InputError(
            f"--encoder: {folder.id} takes {folder.image_size_px} px, but tiles of {out} have {tile_px} px; no tile is resized, "
            "so name an encoder of that size"
        )
    return folder


def encoder_for(
    lock: Mapping[str, Any], out: str, encoder: str | None, encoder_id: str | None, model_name: str | None
) -> EncoderFolder:
    """The encoder to look with: the one named, else that of the set's own model."""
    if encoder is not None:
        if model_name is not None:
            raise InputError("--model: is for its encoder, and --encoder names one; leave one of them out")
        return open_encoder(encoder, encoder_id)
    model, known = lock["model"], lock["encoder"]
    if model_name is not None or model["id"] in BUILT_IN:
        name = model_name or str(model["id"])
        folder = open_model(name)
        if folder.sha256 != model["sha256"]:
            right = (
                "name that folder" if model_name else "name its folder with --model, or another encoder with --encoder"
            )
            raise InputError(
                f"--model: {name} ({folder.sha256[:12]}) is not the model of {out}, {model['id']} ({model['sha256'][:12]}); {right}"
            )
        if folder.has_encoder:
            return encoder_of(folder)
        raise InputError(f"--model: {name} holds no encoder; name {folder.encoder['id']} with --encoder")
    if known.get("source"):
        return open_encoder(f"{str(known['source']).partition('@')[0]}@{known['revision']}")
    raise InputError(
        f"{out}: its lock names model {model['id']} but no place; give its folder with --model, or another encoder with --encoder"
    )


def check_whole(out: str, standing: Standing, *, quick: bool = False) -> None:
    """InputError where the set holds no tile, or `verify` (`--quick` where `quick`) finds a fault."""
    if not standing.commits:
        raise InputError(f"{out}: holds no tile yet; build it first")
    faults = check_output(standing, quick=quick).findings
    if faults:
        raise InputError(
            f"{out}: has {len(faults):,} fault{'s' * (len(faults) > 1)}; `synthfactory verify {out}` names them"
        )


def _described(source: Source) -> dict[str, Any]:
    return {
        "place": without_secrets(source.place),
        "tiles": len(source.real),
        "patients": source.real.count_patients(),
        "pixels": source.pixels is not None,
    }


def _independence(lock: Mapping[str, Any], folder: EncoderFolder) -> dict[str, Any]:
    known = lock["encoder"]
    same = (
        known["sha256"] == folder.sha256
        if known.get("sha256")
        else repo_of(str(known.get("id", ""))) == repo_of(folder.id)
    )
    note = (
        "the very encoder that conditions the set's model, so not independent of it"
        if same
        else "not the encoder that conditions the set's model"
    )
    return {"id": folder.id, "sha256": folder.sha256, "independent": not same, "note": note}


def _not_measured(found: Mapping[str, Any], audit: Audit, lock: Mapping[str, Any]) -> list[str]:
    """What a reader must not take for looked at."""
    lines = [f"class {label}: members or holdout have no tile of it" for label in audit.left_out]
    if not audit.pixels:
        sides = (("--members", audit.members), ("--holdout", audit.holdout))
        without = [f"{option} {source.place}" for option, source in sides if source.pixels is None]
        why = f"{' and '.join(without)}: embeddings alone"
        if not has_patterns(audit.size_px):
            why = f"tiles of {audit.size_px} px are too small for it"
        lines.append(f"pixel check of copies: {why}")
    if not found["encoder"]["independent"]:
        lines.append("an encoder of its own: with another one the same tiles may look otherwise")
    if lock["recipe"].get("bags"):
        lines.append("attacks that use which tiles share a bag")
    if found["members"]["of_the_set"] is None and rests_on_patients(lock):
        lines.append(
            "members of whom no tile was drawn, apart: they count as members, so a set that uses few of them looks safer (--lineage)"
        )
    of_the_set = found["members"]["of_the_set"]
    if of_the_set is not None and of_the_set["found"] < of_the_set["patients"]:
        missing = of_the_set["patients"] - of_the_set["found"]
        lines.append(f"{counted(missing, 'patient')} behind the set of whom --members has no tile")
    if of_the_set is not None and of_the_set.get("tiles_of_nobody"):
        lines.append(
            f"{counted(of_the_set['tiles_of_nobody'], 'tile')} of the set of which nobody knows on whom they rest"
        )
    for name, control in found["controls"].items():
        if control["passed"] is None:
            lines.append(f"control '{name}': {control['why']}")
    lines.append(
        "copies turned by other than right angles, scaled, or shifted by over a quarter of a tile; attacks that know noise or conditions"
    )
    return lines
