"""Does a build belong into its OUT? The recipe and the keys of what was begun there, or new ones."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from synthfactory.plan.lock import (
    build_lock,
    check_same_execution,
    check_same_recipe,
    check_same_terms,
    grown,
    lock_yaml,
)
from synthfactory.plan.recipe import BEFORE_SITES, recipe, version_of
from synthfactory.plan.rounds import Round
from synthfactory.plan.seeds import Keys
from synthfactory.run.bound import check_bound
from synthfactory.run.keys import make_keys, read_keys
from synthfactory.run.prepare import Prepared, Standing, label_levels, read_standing
from synthfactory.run.source import UNCONDITIONAL
from synthfactory.shards.manifest import LOCK
from synthfactory.shards.store import Store, open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.names import slug_collisions
from synthfactory.spec.schema import Spec

if TYPE_CHECKING:  # scipy takes half a second, and most plans have no use for it
    from synthfactory.privacy.projection import Projection
    from synthfactory.privacy.release import Release

Found: TypeAlias = "tuple[Release, Projection] | None"  # under differential privacy


def recipe_of(prepared: Prepared, keys: Keys, found: Found, lock: Mapping[str, Any] | None) -> dict[str, Any]:
    """That of a build into the set with this lock (None: a new one).

    Under differential privacy nothing in it depends on the bank but through the release.
    """
    bank, spec, version = prepared.bank, prepared.spec, version_of(lock, prepared.spec.privacy.mechanism)
    if found is not None:
        from synthfactory.run.releasing import stated

        says = stated(*found)
        macs = dict.fromkeys(spec.classes, f"release:{says['release_sha256'][:16]}")
        return recipe(spec, prepared.facts, macs, says, version)
    sites = version > BEFORE_SITES
    macs = {
        name: UNCONDITIONAL if bank is None else bank.class_mac(keys.conditions, name, sites) for name in spec.classes
    }
    return recipe(spec, prepared.facts, macs, conditions_version=version)


def _facts(prepared: Prepared, found: Found) -> tuple[list[str], str]:
    """(label levels, cohort) as the lock states them: declared under differential privacy, since rows would tell of patients."""
    if found is not None:
        return [str(prepared.spec.privacy.label_level)], "unknown"
    return label_levels(prepared.conditions.summaries), prepared.conditions.cohort


def check_agrees(prepared: Prepared, standing: Standing) -> None:
    """InputError where OUT was begun with another recipe, other execution, or keys that are gone, or LINEAGE is another set's. Writes
    nothing.

    Tiles that are not embedded yet cannot be compared with those that OUT was begun with; all else is.
    """
    spec = prepared.spec
    check_bound(spec, standing)
    if standing.lock is None:
        return
    keys = read_keys(spec, open_store(spec.lineage))
    found = _kept(prepared, standing.lock)
    if found is None and prepared.bank is None and prepared.conditions.tiles is not None:
        banks = standing.lock["recipe"]["class_banks"]
        macs = {name: banks.get(name, "") for name in spec.classes}
        values = recipe(
            spec, prepared.facts, macs, conditions_version=version_of(standing.lock, spec.privacy.mechanism)
        )
    else:
        values = recipe_of(prepared, keys, found, standing.lock)
    try:
        check_same_recipe(standing.lock, values, spec.output.path)
    except InputError as error:
        raise spec.error("output.path", str(error)) from None
    check_same_execution(standing.lock, spec)
    _check_same_model(prepared, standing.lock)
    terms = spec.terms.settled(dict(prepared.facts.licence), dict(prepared.facts.encoder_licence))
    check_same_terms(standing.lock, spec, terms)
    check_named(spec, standing.rounds, standing.commits)
    stood = [str(entry["name"]) for entry in standing.lock["classes"]]
    joins = [name for name in spec.classes if name not in stood]
    if found is not None and joins:
        raise spec.error(
            f"classes.{joins[0]}",
            f"cannot join {spec.output.path}: its release is of {', '.join(stood)}; a class that joins costs a release of its own, so "
            "give it another output",
        )
    for later, earlier in slug_collisions([*stood, *(name for name in spec.classes if name not in stood)]):
        raise spec.error(
            f"classes.{later}",
            f"gives the same keys as class '{earlier}', which {spec.output.path} holds already (case and punctuation do not count); "
            "rename it, or choose a new output",
        )


def check_named(spec: Spec, rounds: Sequence[Round], commits: Container[int]) -> None:
    """InputError where shards that are still to be made have a class that the spec no longer names: its conditions are unknown."""
    for step in rounds:
        absent = sorted(step.ranges.keys() - spec.classes.keys())
        if absent and any(
            shard not in commits for shard in range(step.first_shard, step.first_shard + step.num_shards)
        ):
            raise spec.error(
                "classes", f"{absent[0]} has tiles still to draw in {spec.output.path}; name it in the spec again"
            )


def _check_same_model(prepared: Prepared, lock: dict[str, Any]) -> None:
    """The lock's copy of what the model says of itself goes into every card: a changed one must not become the truth."""
    facts = prepared.facts
    if lock["model"]["sha256"] != facts.sha256 or facts.backend != "native":
        return  # another model is refused as another recipe
    says = {
        "licence": dict(facts.licence), "tile_size_px": facts.tile_size_px, "resolution_mpp": facts.resolution_mpp,
        "domain": facts.domain,
    }  # fmt: skip
    changed = [name for name, value in says.items() if lock["model"][name] != value]
    if changed:
        raise prepared.spec.error(
            "output.path",
            f"{prepared.spec.output.path}/{LOCK}: says another {' and '.join(changed)} than the model does, so it was changed since; "
            "restore it from a copy",
        )


def begun(
    prepared: Prepared, standing: Standing, lineage: Store, say: Callable[[str], None]
) -> tuple[dict[str, Any], Keys, Found]:
    """Lock, keys and release of this build: those that stand in OUT, or new ones. A lock with new classes is true once their round stands.

    A first build under differential privacy spends here.
    """
    spec = prepared.spec
    if standing.lock is None:
        found = _released(prepared, say)  # first: what it may refuse, it refuses before anything is written
        keys = make_keys(spec, lineage)
        values = recipe_of(prepared, keys, found, None)
        levels, cohort = _facts(prepared, found)
        lock = build_lock(spec, prepared.facts, values, list(spec.classes), levels, prepared.maker, cohort)
        if standing.store.create(LOCK, lock_yaml(lock)):
            return lock, keys, found
        standing = read_standing(spec.output.path)  # another build was faster: agree with it, or be refused
        assert standing.lock is not None
    check_agrees(prepared, standing)
    keys, found = read_keys(spec, lineage), _kept(prepared, standing.lock)
    values = recipe_of(prepared, keys, found, standing.lock)
    levels, cohort = _facts(prepared, found)
    return grown(standing.lock, list(spec.classes), values, levels, cohort), keys, found


def _released(prepared: Prepared, say: Callable[[str], None]) -> Found:
    asked = prepared.spec.privacy
    if asked.mechanism != "dp":
        return None
    from synthfactory.run.releasing import charged

    release, projection, new = charged(prepared)
    done = "is charged" if new else "was charged before, and its release is taken again:"
    say(f"privacy: cohort {asked.cohort} {done} epsilon {release.epsilon:g} at delta {release.delta:g}")
    return release, projection


def _kept(prepared: Prepared, lock: dict[str, Any]) -> Found:
    """The release that the set was begun with; None where it was begun, or is asked for, without one."""
    if {lock["recipe"]["privacy"]["mechanism"], prepared.spec.privacy.mechanism} != {"dp"}:
        return None
    from synthfactory.run.releasing import kept

    return kept(prepared, lock)
