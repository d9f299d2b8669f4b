"""`synthfactory audit`: does a set tell who its conditions came from? Two controls first; where one fails there are no figures.

Members are the real tiles that the set was made from, the holdout tiles of other patients of the same kind. The report is internal: it
names tiles of real patients. This file knows no command line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from synthfactory.evaluate import audit as measures
from synthfactory.evaluate.audit import LEAST_TILES, QUANTILE, Drawn, Real, Threshold, equal, threshold, within
from synthfactory.evaluate.copies import copy_scores, pattern
from synthfactory.evaluate.figures import Attack, Figure
from synthfactory.evaluate.intervals import halves
from synthfactory.evaluate.membership import proportion
from synthfactory.evaluate.neighbours import nearest
from synthfactory.evaluate.planted import LEAST_BLEND, TESTING, Change, plant, schedule
from synthfactory.run.audit_tiles import Begin, DrawnTiles, Embed, Source, Tick, check_apart, embedded
from synthfactory.run.products import fastest_product
from synthfactory.spec.errors import InputError

FORMAT = "synthfactory-audit/1"
SEED = 0
SHORTLIST = 8  # of the encoder, and as many of fingerprints: of copies made as TUNING does, 99 % have their original on one of them
PIXEL_TILES = 4000  # real tiles of the holdout that set and try the threshold
PLANTS = 480
FOUND, ALARMS = 0.98, 0.01
LISTED = 100  # copies named in the report
SAVED_ANEW = {"compressed": TESTING["compressed"]}
NO_PROOF = "An audit that finds nothing proves nothing: it says that these attacks failed on these tiles."


class UnfitError(Exception):
    """A control did not hold: the audit could not have seen what it is there to see, or sees what is not there."""

    def __init__(self, controls: Mapping[str, Any], why: str) -> None:
        super().__init__(why)
        self.controls = controls


@dataclass(frozen=True)
class Mechanism:
    """What a set's conditions went through."""

    name: str = "none"
    epsilon: float | None = None
    delta: float | None = None


@dataclass
class Audit:
    """All that is compared, and what says how to."""

    drawn: DrawnTiles
    members: Source
    holdout: Source
    embed: Embed
    size_px: int
    mechanism: Mechanism = field(default_factory=Mechanism)
    begin: Begin = lambda what, total: lambda count: None
    # Rows of the members on whom tiles rest: these are attacked (None: all), and copies looked for among all.
    resting: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_apart(self.members, self.holdout)
        self._search = partial(nearest, product=fastest_product())
        classes = set(self.drawn.drawn.classes.tolist())
        known = [set(source.real.classes.tolist()) for source in (self.members, self.holdout)]
        self.left_out = sorted(classes - (known[0] & known[1]))
        if len(self.left_out) == len(classes):
            raise InputError(
                f"--members, --holdout: no class of the set ({', '.join(sorted(classes)[:8])}) has tiles in both; spell labels alike"
            )
        self._typical: dict[str, float] = {}

    @property
    def pixels(self) -> bool:
        """Whether there is a pixel check."""
        return all(each.fingerprints is not None for each in (self.drawn, self.members, self.holdout))

    def run(self) -> dict[str, Any]:
        """The figures of the report. UnfitError where a control fails."""
        controls: dict[str, Any] = {}
        members, holdout = self._of_the_classes()
        self.begin("control: a set drawn from the holdout must look innocent", 0)
        innocent = measures.innocent(members, holdout, self._search, SEED)
        controls["innocent set"] = _innocence(innocent)
        scores, real_scores = self._scores()
        limit = threshold(real_scores[1], self.holdout.real.of(real_scores[0]), SEED)
        controls["planted copies"] = self._planted(limit)
        failed = [f"{name}: {each['why']}" for name, each in controls.items() if each["passed"] is False]
        if failed:
            raise UnfitError(controls, "; ".join(failed))
        return {
            "controls": controls,
            "copies": self._copies(limit, scores, len(real_scores[0])),
            **self._nearness(members, holdout, controls["innocent set"]),
        }

    def _of_the_classes(self) -> tuple[Real, Real]:
        """Members and holdout of the set's classes, equal in patients and tiles for control and attacks alike."""
        classes = list(set(self.drawn.drawn.classes.tolist()) - set(self.left_out))
        members = self.members.real if self.resting is None else self.members.real.of(self.resting)
        members, holdout = (real.of(np.isin(real.classes, classes)) for real in (members, self.holdout.real))
        return members, holdout

    # Copies: a score of each tile against the members, by pixels on two shortlists, or by distance alone.

    def _scores(self) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """(score and nearest member of each drawn tile, (2, N); rows and scores of real tiles of the holdout)."""
        real = self.holdout.real
        fit = np.flatnonzero(np.isin(real.classes, np.unique(self.members.real.classes)))
        rows = np.sort(np.random.default_rng(SEED).permutation(fit)[:PIXEL_TILES] if self.pixels else fit)
        some = real.of(rows)
        if not self.pixels:
            distances = within((some.embeddings, some.classes), self._references, 1, self._search)[1][:, 0]
            tuned = halves(some.patients, some.classes, SEED)[0]
            self._typical = {
                str(label): float(np.median(distances[tuned][some.classes[tuned] == label]))
                for label in np.unique(some.classes[tuned])
            }
            real_scores = measures.nearness(distances, some.classes, self._typical)
            return self._by_distance(self.drawn.drawn), (rows, np.nan_to_num(real_scores, nan=-np.inf))
        assert self.holdout.fingerprints is not None
        assert self.holdout.pixels is not None
        of_member = self.members.patterns()
        theirs = self._shortlists(some.embeddings, self.holdout.fingerprints[rows], some.classes)
        patterns = (pattern(self.holdout.pixels(int(row))) for row in rows)
        tick = self.begin(f"copies: {len(rows):,} real tiles of the holdout set the threshold", len(rows))
        found = _best(patterns, theirs, of_member, tick)[0]
        assert self.drawn.fingerprints is not None
        drawn = self.drawn.drawn
        mine = self._shortlists(drawn.embeddings, self.drawn.fingerprints, drawn.classes)
        tick = self.begin(f"copies: {len(mine):,} tiles of the set against members, pixel by pixel", len(mine))
        return np.stack(_best(map(pattern, self.drawn.images()), mine, of_member, tick)), (rows, found)

    @property
    def _references(self) -> tuple[np.ndarray, np.ndarray]:
        return self.members.real.embeddings, self.members.real.classes

    def _by_distance(self, drawn: Drawn) -> np.ndarray:
        rows, distances = within((drawn.embeddings, drawn.classes), self._references, 1, self._search)
        scores = measures.nearness(distances[:, 0], drawn.classes, self._typical)
        return np.stack([np.nan_to_num(scores, nan=-np.inf), rows[:, 0]])

    def _shortlists(self, embeddings: np.ndarray, prints: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Rows of members (N, 2 SHORTLIST), -1 where there are fewer: nearest by the encoder, and by fingerprint."""
        theirs = self.members.fingerprints
        assert theirs is not None
        middle, spread = theirs.mean(axis=0), theirs.std(axis=0) + 1e-6
        references = ((theirs - middle) / spread, self.members.real.classes)
        lists = (
            within((embeddings, classes), self._references, SHORTLIST, self._search)[0],
            within(((prints - middle) / spread, classes), references, SHORTLIST, self._search)[0],
        )
        return np.concatenate(lists, axis=1)

    def _planted(self, limit: Threshold | None) -> dict[str, Any]:
        """Control: copies made on purpose, of member tiles; where there are no pixels, of their embeddings."""
        if limit is None:
            return {"passed": None, "why": self._no_threshold()}
        found, named, changes, originals = self._planted_tiles(limit) if self.pixels else self._planted_vectors(limit)
        tiles = min(len(found), originals)  # a tile that was planted twice is one witness
        low, high = proportion(float(found.mean()) * tiles, tiles)
        fits = found.mean() >= FOUND
        assert limit.alarms.interval is not None
        quiet = limit.alarms.interval[0] <= ALARMS
        why = ""
        if not fits:
            why = f"of {len(found):,} planted copies {found.mean():.1%} are found; {FOUND:.0%} are needed for the audit to mean anything"
            why += "" if self.pixels else "; name sources with pixels, in which copies are looked for by pixels"
        elif not quiet:
            why = f"{limit.alarms.value:.1%} of real tiles look like copies, surely more than the {ALARMS:.0%} that may"
        return {
            "passed": bool(fits and quiet), "why": why, "planted": len(found), "found": float(found.mean()), "found_999": [low, high],
            "named_the_right_tile": named, "by_change": changes, "false_alarms": limit.alarms.to_json(),
            "of": "tiles" if self.pixels else "embeddings, as saving the set's own tiles anew moves theirs; no other copies could be tried",
            "changes": {"least share in a blend": LEAST_BLEND, "names": sorted(changes)},
        }  # fmt: skip

    def _planted_tiles(self, limit: Threshold) -> tuple[np.ndarray, float, dict[str, float], int]:
        """(which were found, share named rightly, share found by change, different tiles among them)."""
        random, real = np.random.default_rng(SEED), self.members.real
        rows = random.permutation(np.flatnonzero(np.isin(real.classes, np.unique(self.drawn.drawn.classes))))
        rows = np.resize(rows, max(PLANTS, 1))
        others = np.array([_of_another(real, int(row), random) for row in rows])
        pixels, plans = self.members.pixels, schedule(TESTING, len(rows))
        assert pixels is not None
        copies = [
            plant(pixels(int(row)), pixels(int(other)), TESTING, names, random)
            for row, other, names in zip(rows, others, plans, strict=True)
        ]
        vectors, prints = embedded(iter(copies), self.embed, self.size_px)
        assert prints is not None
        lists = self._shortlists(vectors, prints, real.classes[rows])
        tick = self.begin(f"control: {len(rows):,} planted copies must be found", len(rows))
        scores, which = _best(map(pattern, copies), lists, self.members.patterns(), tick)
        found, labels = scores > limit.limit, np.array([" + ".join(names) for names in plans])
        changes = {str(name): float(found[labels == name].mean()) for name in np.unique(labels)}
        right = float((which[found] == rows[found]).mean()) if found.any() else 0.0
        return found, right, changes, len(np.unique(rows))

    def _planted_vectors(self, limit: Threshold) -> tuple[np.ndarray, float, dict[str, float], int]:
        """Members' embeddings, each moved as a tile of the set moves when it is saved anew as JPEG."""
        random, real = np.random.default_rng(SEED), self.members.real
        few = min(PLANTS, len(self.drawn.keys))
        taken = set(random.permutation(len(self.drawn.keys))[:few].tolist())
        images = [image for number, image in enumerate(self.drawn.images()) if number in taken]
        change: Change = SAVED_ANEW["compressed"]
        before = embedded(iter(images), self.embed, self.size_px)[0]
        after = embedded((change(image, image, random) for image in images), self.embed, self.size_px)[0]
        fit = np.flatnonzero(np.isin(real.classes, list(self._typical)))
        rows = np.resize(random.permutation(fit), PLANTS)
        vectors = real.embeddings[rows] + (after - before)[np.arange(PLANTS) % few]
        scores, which = self._by_distance(Drawn(vectors, real.classes[rows]))
        found = scores > limit.limit
        return (
            found,
            float((which[found] == rows[found]).mean()) if found.any() else 0.0,
            {"saved anew": float(found.mean())},
            len(np.unique(rows)),
        )

    def _no_threshold(self) -> str:
        n = len(self.holdout.real)
        return f"not measurable with n = {n:,} holdout tiles; {LEAST_TILES:,} are needed in each half of its patients"

    def _copies(self, limit: Threshold | None, scores: np.ndarray, real_tiles: int) -> dict[str, Any]:
        by = (
            "pixels, on the shortlists of encoder and fingerprints"
            if self.pixels
            else "distance in the encoder alone: no pixel check was possible"
        )
        if limit is None:
            return {"by": by, "rate": Figure(None, None, len(self.holdout.real), self._no_threshold()).to_json()}
        drawn, (value, which) = self.drawn.drawn, scores
        fit = np.isfinite(value)
        owners = self.members.real.patients[np.maximum(which, 0).astype(int)]
        flagged = np.flatnonzero(fit & (value > limit.limit))
        flagged = flagged[np.argsort(-value[flagged], kind="stable")][:LISTED]
        return {
            "by": by,
            "threshold": {"quantile": QUANTILE, "limit": limit.limit, "real_tiles": real_tiles, "false_alarms": limit.alarms.to_json()},
            "rate": limit.of(value[fit], owners[fit], SEED).to_json(),
            "by_class": {
                label: limit.of(value[fit & (drawn.classes == label)], owners[fit & (drawn.classes == label)], SEED).to_json()
                for label in self._labels()
            },
            "most_alike": [
                {"tile": self.drawn.keys[at], "member": self.members.names(int(which[at])), "score": float(value[at])} for at in flagged
            ],
        }  # fmt: skip

    # Nearness and membership: against an equal holdout.

    def _labels(self) -> list[str]:
        """The classes that can be compared, those of the fewest patients first."""
        real = self.members.real
        labels = sorted(set(self.drawn.drawn.classes.tolist()) - set(self.left_out))
        return sorted(labels, key=lambda label: (real.count_patients(label), label))

    def _nearness(self, members: Real, holdout: Real, control: Mapping[str, Any]) -> dict[str, Any]:
        if control["passed"] is None:
            gone = {"value": None, "why": f"the control of innocence could not be run: {control['why']}"}
            return {"nearer_to_members": gone, "ratio_to_second": gone, "membership": gone, "epsilon": gone}
        self.begin("attacks on membership", 0)
        mine, theirs = equal(members, holdout, SEED)
        one, other, drawn = members.of(mine), holdout.of(theirs), self.drawn.drawn
        near = measures.nearer(drawn, one, other, self._search)
        found = measures.attacks(drawn, one, other, self._search)
        labels, all_tiles = self._labels(), np.ones(len(drawn.classes), bool)
        return {
            "equal_sides": {"tiles": len(one), "patients": [one.count_patients(), other.count_patients()]},
            "nearer_to_members": {
                **near.of(all_tiles, SEED).to_json(),
                "by_class": {label: near.of(drawn.classes == label, SEED).to_json() for label in labels},
            },
            "ratio_to_second": {
                "drawn": self._ratio(drawn.embeddings, drawn.classes),
                "real": self._ratio(holdout.embeddings, holdout.classes),
            },
            "membership": {name: attack.to_json() for name, attack in found[""].items()},
            "membership_by_class": {
                label: {name: attack.to_json() for name, attack in found[label].items()}
                for label in labels
                if label in found
            },
            "epsilon": self._epsilon(found[""]),
        }

    def _ratio(self, embeddings: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
        rows, distances = within((embeddings, classes), self._references, 1, self._search)
        first, near = rows[:, 0], distances[:, 0]
        ratios = measures.ratio_to_second((embeddings, classes), self.members.real, first, near, self._search)
        return measures.middle_ratio(ratios, self.members.real.patients[np.maximum(first, 0)], SEED).to_json()

    def _epsilon(self, found: Mapping[str, Attack]) -> dict[str, Any]:
        stated = self.mechanism
        if stated.name != "dp":
            return {"value": None, "why": f"the set has no epsilon to be tried (mechanism {stated.name})"}
        assert stated.delta is not None
        shown = measures.epsilon_at_least(list(found.values()), stated.delta, SEED)
        said = {"stated_epsilon": stated.epsilon, "stated_delta": stated.delta}
        if shown.value is None:
            return {**shown.to_json(), **said}
        broken = stated.epsilon is not None and shown.value > stated.epsilon
        sides = next(iter(found.values()))
        most = measures.most_epsilon(len(sides.members), len(sides.others), stated.delta)
        return {
            "at_least_999": shown.value,
            "most_999": most,
            "n": shown.n,
            "contradicts_what_is_stated": broken,
            **said,
        }


def _innocence(found: measures.Innocence) -> dict[str, Any]:
    if found.why_not:
        return {"passed": None, "why": found.why_not}
    off = [
        f"{name} {each['value']:.3f} ({each['interval_999'][0]:.3f} to {each['interval_999'][1]:.3f})"
        for name, each in found.figures.items()
        if not each["interval_999"][0] <= 0.5 <= each["interval_999"][1]
    ]
    why = f"a set without members tells them from others: {', '.join(off)}; take members and holdout from the same sites and classes"
    return {"passed": found.passed, "why": why if off else "", "figures": dict(found.figures)}


def _of_another(real: Real, row: int, random: np.random.Generator) -> int:
    """A tile of another patient of the class to blend with; of any, where there is none."""
    others = np.flatnonzero((real.classes == real.classes[row]) & (real.patients != real.patients[row]))
    others = others if len(others) else np.flatnonzero(real.patients != real.patients[row])
    return int(random.choice(others)) if len(others) else row


def _best(
    patterns: Any, shortlists_NK: np.ndarray, of_member: Callable[[int], np.ndarray], tick: Tick
) -> tuple[np.ndarray, np.ndarray]:
    """(best score of each pattern with the members on its shortlist, -inf without any; that member's row)."""
    scores, which = np.full(len(shortlists_NK), -np.inf), np.full(len(shortlists_NK), -1.0)
    for number, (mine, rows) in enumerate(zip(patterns, shortlists_NK, strict=True)):
        listed = np.unique(rows[rows >= 0])
        if len(listed):
            found = copy_scores(mine, np.stack([of_member(int(row)) for row in listed]))
            scores[number], which[number] = found.max(), listed[found.argmax()]
        tick(1)
    return scores, which


def lock_sha256(data: bytes) -> str:
    """Of spec.lock.yaml, as the report names it."""
    return hashlib.sha256(data).hexdigest()
