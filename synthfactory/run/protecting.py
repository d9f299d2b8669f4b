"""What a spec's `privacy` asks of model and bank: refused or said in the plan, before anything is drawn or spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from synthfactory.embeddings.bank import Bank
from synthfactory.model.find import Opened
from synthfactory.model.folder import ModelFolder
from synthfactory.plan.allocate import class_counts
from synthfactory.plan.conditions import ClassIndex
from synthfactory.plan.plan import ClassSummary
from synthfactory.plan.recipe import ModelFacts
from synthfactory.privacy.mix import assigned, clusters_of, most_tiles
from synthfactory.privacy.projection import Projection, load_projection
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec

if TYPE_CHECKING:  # scipy takes half a second, and most plans have no use for it
    from synthfactory.privacy.ledger import Ledger

PROJECTION = "projection.safetensors"
CLUSTER_KEY = b"synthfactory-mix"  # no secret: what comes of it stays in LINEAGE
NONE = "none: conditions are real tiles' embeddings as they are, unprotected; treat the set as personal data"
MIX = "not a privacy guarantee: an attack by nearest condition finds members"


def open_projection(spec: Spec, model: Opened, facts: ModelFacts) -> Projection:
    """The spec's projection, or the model's own. InputError where there is none, or where it is of other embeddings."""
    place = spec.privacy.projection
    if place is None:
        own = model.path / PROJECTION if isinstance(model, ModelFolder) else None
        if own is None or not own.is_file():
            raise spec.error(
                "privacy.projection",
                f"is missing, and model {facts.id} ships none; make one from public embeddings: `synthfactory privacy fit`",
            )
        place = str(own)
    try:
        found = load_projection(place)
        if found.width != facts.condition_width:
            raise InputError(
                f"{place}: is of embeddings {found.width} wide; model {facts.id} takes {facts.condition_width}"
            )
        for key in ("id", "sha256"):
            own_, other = found.encoder.get(key), facts.encoder.get(key)
            if own_ and other and own_ != other:
                raise InputError(f"{place}: is of encoder {own_}; the embeddings are of {other}")
    except InputError as error:
        raise spec.error("privacy.projection", str(error)) from None
    return found


def ledger_of(spec: Spec) -> Ledger:
    """The ledger of the spec's cohort."""
    from synthfactory.privacy.ledger import Ledger

    assert spec.privacy.ledger is not None and spec.privacy.cohort is not None
    try:
        return Ledger(open_store(spec.privacy.ledger), spec.privacy.cohort)
    except InputError as error:
        raise spec.error("privacy.ledger", str(error)) from None


def protection(
    spec: Spec, model: Opened, facts: ModelFacts, summaries: Mapping[str, ClassSummary], bank: Bank | None
) -> tuple[str, ...]:
    """What the plan says of privacy, a sentence each. InputError, at its place in the spec, for what cannot give what was asked for.

    `bank` is None where tiles are still to be embedded: what depends on it is then checked once they are.
    """
    if spec.embeddings.unconditional:
        return ()
    counts = class_counts(spec)
    if spec.privacy.mechanism == "none":
        for name, count in counts.items():
            _check_most(spec, name, count, math.ceil(count / max(summaries[name].patients, 1)))
        return (NONE,)
    for name in counts:
        if summaries[name].unknown_rows:
            raise spec.error(
                "privacy.mechanism",
                f"the unit of protection is the patient, and {summaries[name].unknown_rows:,} rows of {name} name none; give each a "
                "patient_id, or leave those rows out",
            )
    return (
        _mix(spec, counts, summaries, bank) if spec.privacy.mechanism == "mix" else _dp(spec, model, facts, summaries)
    )


def _check_most(spec: Spec, name: str, count: int, most: int) -> None:
    limit = spec.privacy.max_tiles_per_patient
    if limit is not None and most > limit:
        raise spec.error(
            "privacy.max_tiles_per_patient",
            f"{count:,} tiles of {name} put a patient into up to {most:,}, more than {limit:,}; ask for fewer tiles, or raise the limit",
        )


def _mix(
    spec: Spec, counts: Mapping[str, int], summaries: Mapping[str, ClassSummary], bank: Bank | None
) -> tuple[str, ...]:
    k = spec.privacy.value("k")
    for name, count in counts.items():
        patients = summaries[name].patients
        if patients < k:
            raise spec.error(
                "privacy.k" if spec.privacy.k else "privacy",
                f"{name} has tiles of {patients} patient{'s' * (patients != 1)}, and a blend takes {k}; lower k (2 or more), or leave the "
                "class out",
            )
        most = k * math.ceil(count / patients)
        if bank is not None and spec.privacy.max_tiles_per_patient is not None:
            low, index = bank.span(name)[0], ClassIndex(*bank.patients_of(name))
            found = assigned(lambda rows, low=low: bank.take(low + rows), index, k, CLUSTER_KEY)  # type: ignore[misc]
            most = most_tiles(clusters_of(found, index), k, count)
        _check_most(spec, name, count, most)
    return (f"mix: each condition blends tiles of {k} patients, within one kind of tissue; {MIX}",)


def _dp(spec: Spec, model: Opened, facts: ModelFacts, summaries: Mapping[str, ClassSummary]) -> tuple[str, ...]:
    from synthfactory.privacy.accountant import sigma_for
    from synthfactory.privacy.release import mean_noise

    asked, projection = spec.privacy, open_projection(spec, model, facts)
    epsilon, delta = float(asked.value("epsilon")), float(asked.value("delta"))
    for name in spec.classes:
        levels = summaries[name].label_levels
        if set(levels) != {asked.label_level}:
            raise spec.error(
                "privacy.label_level",
                f"{asked.label_level} is declared, and rows of {name} are labelled by {', '.join(levels)}",
            )
    sigma = sigma_for(epsilon, delta)
    noises = {}
    for name in spec.classes:
        patients = summaries[name].patients
        noises[name] = mean_noise(sigma, projection.dimension, patients) / projection.between
        if noises[name] >= 1:
            raise spec.error(
                "privacy.epsilon",
                f"noise would drown {name}: {noises[name]:.2g} times the distance between classes, with {patients:,} "
                f"patient{'s' * (patients != 1)} at epsilon {epsilon:g}; about {math.ceil(patients * noises[name]):,} patients are needed, "
                "or a larger epsilon, or another mechanism for this class",
            )
    total = _check_cap(spec, sigma, projection)
    return (
        f"dp: epsilon {epsilon:g} at delta {delta:g} for adding or removing one patient of cohort {asked.cohort}; one release, any number "
        f"of tiles; what the base model was trained on is not covered, nor is the projection ({projection.provenance})",
        f"ledger: {total}",
        "noise of a class's mean over the distance between classes: "
        + ", ".join(f"{name} {value:.2f}" for name, value in noises.items()),
        "what this plan says of patients and rows is of the bank itself: internal, not covered by epsilon",
    )


def _check_cap(spec: Spec, sigma: float, projection: Projection) -> str:
    """What the ledger says, and will say. InputError where this set's release would be over the cap."""
    from synthfactory.privacy.accountant import epsilon_together

    asked, ledger = spec.privacy, ledger_of(spec)
    epsilon, delta, cap = float(asked.value("epsilon")), float(asked.value("delta")), float(asked.value("cap"))
    try:
        entries = ledger.entries()
    except InputError as error:
        raise spec.error("privacy.ledger", str(error)) from None
    spent = epsilon_together([entry.release.sigma for entry in entries], delta)
    alike = any(
        (entry.request.epsilon, entry.request.delta, entry.request.projection_sha256)
        == (epsilon, delta, projection.sha256)
        and set(spec.classes) <= set(entry.request.classes)
        for entry in entries
    )
    total = epsilon_together([*(entry.release.sigma for entry in entries), sigma], delta)
    if alike:
        return (
            f"{asked.cohort} has spent epsilon {spent:.3g} of {cap:g}; the release of an equal request is taken again"
        )
    if total > cap * (1 + 1e-9):
        raise spec.error(
            "privacy.cap",
            f"cohort {asked.cohort} has spent epsilon {spent:.3g} at delta {delta:g}; with this release it would be {total:.3g}, over "
            f"{cap:g}; build from a release that is there (the same classes, epsilon and bank), or raise the cap, which weakens "
            "what was promised",
        )
    return f"{asked.cohort} has spent epsilon {spent:.3g} of {cap:g}; this build's release makes it {total:.3g}"
