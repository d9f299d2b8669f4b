"""Everything a build, a plan or a verification needs to know before anything is drawn: model, bank, OUT as it stands, plan.

Reads only; imports no torch (a folder of tiles is embedded by a callable that is passed in).
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from synthfactory.embeddings.bank import Bank
from synthfactory.embeddings.places import make_private, unmake
from synthfactory.embeddings.tiles import embed_tiles
from synthfactory.model.encoder import EncoderFolder
from synthfactory.model.find import Opened
from synthfactory.plan.conditions import ClassIndex
from synthfactory.plan.lock import read_lock, with_joined
from synthfactory.plan.plan import ClassSummary, Plan, make_plan
from synthfactory.plan.recipe import BEFORE_SITES, BEFORE_SLIDES, CONDITIONS_VERSION, ModelFacts
from synthfactory.plan.rounds import Round, check_chain, totals
from synthfactory.plan.units import key_of, unit_of
from synthfactory.run.around import set_around
from synthfactory.run.balancing import balanced
from synthfactory.run.models import choose_model
from synthfactory.run.nearest_real import check_apart, open_holdout
from synthfactory.run.protecting import protection
from synthfactory.run.source import Conditions, open_conditions, placed
from synthfactory.shards.base import NotAFileError, is_temporary
from synthfactory.shards.commit import Commit, list_commits
from synthfactory.shards.manifest import LOCK, read_rounds
from synthfactory.shards.store import Store, open_store
from synthfactory.shards.verify import Expected
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec

Embed = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Standing:
    """What lies in OUT already. `lock` is None where nothing was built there; classes that rounds added are in it, even where a build
    ended before it could renew the file.
    """

    store: Store
    lock: dict[str, Any] | None
    rounds: tuple[Round, ...]
    commits: dict[int, Commit]


def read_standing(place: str) -> Standing:
    """Reads an OUT. InputError where it holds something, but is no set of ours."""
    store = open_store(place)
    try:
        lock: dict[str, Any] | None = read_lock(store.read(LOCK, through_links=True))
    except FileNotFoundError:
        lock = None
    except NotAFileError as error:
        raise InputError(str(error)) from None
    except NotADirectoryError:
        raise InputError(f"{place}: is a file, or lies below one; name a folder or a URL") from None
    except InputError as error:
        raise InputError(f"{place}/{error}") from None
    if lock is None:
        strange = next((path for path, _ in store.entries() if not is_temporary(path)), None)
        if strange is not None:
            raise InputError(
                f"{place}: holds {strange}, but no {LOCK}, so it is no set of synthfactory's{_lineage_hint(store)}; "
                "name the output.path of a build, or an empty place to build into"
            )
        return Standing(store, None, (), {})
    values = read_rounds(store)
    try:
        rounds = tuple(Round.from_json(step) for step in values)
        check_chain(rounds)
        lock = with_joined(lock, [step.joined for step in rounds if step.joined])
        _check_classes(rounds, lock)
    except InputError as error:
        raise InputError(f"{place}/{error}") from None
    return Standing(store, lock, rounds, list_commits(store))


def _check_classes(rounds: Sequence[Round], lock: Mapping[str, Any]) -> None:
    known = {entry["name"] for entry in lock["classes"]}
    for step in rounds:
        strange = sorted(step.ranges.keys() - known)
        if strange:
            raise InputError(
                f"rounds/{step.index:06d}.json: has a class '{strange[0]}' that neither {LOCK} nor a round before names; "
                "restore what was changed from a copy"
            )


def _lineage_hint(store: Store) -> str:
    """What else it may be."""
    tops = {path.partition("/")[0] for path, _ in store.entries()}
    return " (it looks like a lineage folder)" if {"secret.json", "units", "leases"} & tops else ""


def expected_of(name: str, rounds: Sequence[Round]) -> Expected:
    """For verification: shard -> (key, class, index) of its slots in order."""

    def expected(shard: int) -> list[tuple[str, str, int]]:
        return [(key_of(name, slot), slot.class_name, slot.index) for slot in unit_of(rounds, shard).slots]

    return expected


@dataclass(frozen=True)
class Prepared:
    """A checked spec with its model and its conditions (tiles that were only listed until `with_embedded`)."""

    spec: Spec
    folder: Opened
    encoder: EncoderFolder | None  # where something is to be embedded
    facts: ModelFacts
    conditions: Conditions
    protection: tuple[str, ...] = ()  # what the plan says of privacy
    balance: tuple[str, ...] = ()  # what the plan says of how the total was shared out
    holdout: Bank | None = None  # real tiles of other patients, where the screen `nearest_real` is on

    @property
    def bank(self) -> Bank | None:
        """The bank; None where tiles are still to be embedded, or there are no conditions at all."""
        return self.conditions.bank

    @property
    def maker(self) -> dict[str, str]:
        """Who made the conditions: id, sha256, token."""
        return {**self.facts.encoder, **({} if self.bank is None else self.bank.encoder)}

    def with_embedded(self, embed: Embed, cache: Path, tick: Callable[[int], None]) -> Prepared:
        """The same with a bank: embeds the folder's tiles through `embed`, as far as `cache` does not hold them."""
        tiles = self.conditions.tiles
        if self.bank is not None or tiles is None:
            return self
        made = make_private(cache)
        try:
            bank = embed_tiles(
                tiles,
                embed,
                encoder={key: self.facts.encoder[key] for key in ("id", "sha256", "token")},
                width=self.facts.condition_width,
                size_px=self.facts.tile_size_px,
                cache=cache,
                tick=tick,
            )
        except InputError as error:
            unmake(made)  # embeddings that are there already stay for the next time
            raise placed(self.spec, error) from None
        found = replace(self.conditions, bank=bank, warnings=(*self.conditions.warnings, *bank.warnings))
        return replace(self, conditions=found)._protected()

    def _protected(self) -> Prepared:
        check_apart(self.spec, self.holdout, self.bank)
        bank, tiles = self.bank, self.conditions.tiles
        people = bank.groups.patients if bank is not None else () if tiles is None else tiles.patient_ids
        says = protection(self.spec, self.folder, self.facts, self.conditions.summaries, bank, people)
        return replace(self, protection=says)

    def with_batch(self, batch_size: int) -> Prepared:
        """The same, with the batch that was found for the device."""
        execution = self.spec.execution.model_copy(update={"batch_size": batch_size})
        spec = self.spec.model_copy(update={"execution": execution})
        return replace(self, spec=spec)

    def plan(self, standing: Standing, seconds_per_call: float | None = None) -> Plan:
        """The plan against an OUT as it stands."""
        done, shortfall = Counter[str](), Counter[str]()
        for commit in standing.commits.values():
            done.update(commit.classes)
            shortfall.update({name: len(indices) for name, indices in commit.shortfall.items()})
        return make_plan(
            self.spec,
            model=self.facts,
            bank=self.conditions.summaries,
            cohort=self.conditions.cohort,
            privacy=self.protection,
            balance=self.balance,
            rounds=standing.rounds,
            committed=done,
            shortfall=shortfall,
            shards_done=len(standing.commits),
            seconds_per_call=seconds_per_call,
        )

    def class_indices(self, conditions_version: int = CONDITIONS_VERSION) -> dict[str, ClassIndex]:
        """For the choice of conditions: rows by site, patient and slide; numbers of rows within the class's canonical order."""
        bank = self.bank
        assert bank is not None
        slides, sites = conditions_version > BEFORE_SLIDES, conditions_version > BEFORE_SITES
        return {
            name: ClassIndex(
                *bank.patients_of(name),
                bank.slides_of(name) if slides else None,
                bank.strata_of(name) if sites else None,
            )
            for name in self.spec.classes
        }


def prepare(spec: Spec) -> Prepared:
    """Opens model and source and checks that they fit one another and the spec; InputError names what does not."""
    chosen = choose_model(spec)
    conditions = open_conditions(chosen.spec, chosen.facts, chosen.encoder)
    holdout = open_holdout(chosen.spec, chosen.facts)
    spec, shared = balanced(chosen.spec, conditions, _held(spec))
    made = Prepared(spec, chosen.model, chosen.encoder, chosen.facts, conditions, balance=shared, holdout=holdout)
    return made._protected()


def _held(spec: Spec) -> dict[str, int]:
    """Slots that a spec's OUT has of each class: what a balance may not take back. What is wrong with OUT is said where it is read."""
    if spec.balance is None:
        return {}
    with contextlib.suppress(InputError, OSError):
        standing = read_standing(spec.output.path)
        if (
            standing.lock is not None and standing.lock["name"] == spec.name
        ):  # others are refused where sets are compared
            return totals(standing.rounds)
    return {}


def standing_of(spec: Spec) -> Standing:
    """`read_standing` of the spec's OUT; errors name the place in the spec."""
    try:
        return read_standing(spec.output.path)
    except InputError as error:
        raise spec.error("output.path", str(error)) from None


def check_writable(spec: Spec) -> None:
    """InputError where OUT or LINEAGE cannot be reached, or cannot be a folder of ours: found before either is begun.

    Sees through links: what must not be published would else lie in OUT by another name.
    """
    for field, problem in spec.nesting_problems(resolve=os.path.realpath):
        raise spec.error(field, problem)
    places = [("output.path", spec.output.path), ("lineage", spec.lineage)]
    if spec.privacy.ledger is not None:
        places.append(("privacy.ledger", spec.privacy.ledger))
    for field, place in places:
        try:
            root = getattr(open_store(place), "root", None)
        except InputError as error:
            raise spec.error(field, str(error)) from None
        if not isinstance(root, Path):
            continue  # an object store says so at the first write
        of_a_set = set_around(root.resolve().parent if field == "output.path" else root)
        if of_a_set is not None:
            raise spec.error(field, f"lies in {of_a_set}, which is a tile set; name a folder of its own")
        nearest = next(step for step in (root, *root.parents) if os.path.lexists(step))
        if not nearest.is_dir():
            raise spec.error(field, f"{nearest} is no folder; name a place where a folder can be made")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise spec.error(field, f"no permission to write in {nearest}; correct that, or name another place")


def label_levels(summaries: Mapping[str, ClassSummary]) -> list[str]:
    """All label levels that occur."""
    return sorted({level for summary in summaries.values() for level in summary.label_levels})
