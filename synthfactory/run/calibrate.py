"""Quality against network calls for one model: every setting draws from the same conditions and noises as the reference.

Measured in the space of the conditioning encoder: whether a probe trained on the bank finds the condition's class again, cosine to the
condition, kernel distance to the conditions. Intervals are of a bootstrap over the conditions' patients, the same in every seed.
What was drawn is kept as embeddings in LINEAGE, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from synthfactory.evaluate.distance import KernelDistance
from synthfactory.evaluate.intervals import patient_weights, student
from synthfactory.evaluate.labels import LabelProbe
from synthfactory.plan.calibration import Interval, Row, Table
from synthfactory.plan.conditions import choose
from synthfactory.plan.cost import calls_per_tile
from synthfactory.plan.seeds import keys_from_seed, noise_key
from synthfactory.run.prepare import Prepared
from synthfactory.sample.official import AnyEngine
from synthfactory.shards.store import Store
from synthfactory.spec.errors import InputError
from synthfactory.spec.sampler import Guidance, Sampler

PROBE_ROWS = 2000  # of each class, at most
BOOTSTRAPS = 1000
PIECE_BATCHES = 4  # drawn and kept at a time: what an interruption may cost
SEED = 1  # of noises, choices and bootstraps: a calibration can be repeated

GRID = {
    "ab2": (5, 10, 20, 40),
    "heun": (5, 10, 20),
    "euler": (10, 20, 40),
    "euler_maruyama": (25, 50, 100),
    "stochastic_heun": (5, 10, 20),
    "own": (10, 25, 50, 100),
}


def settings(solvers: Sequence[str], steps: Sequence[int], guidance: Guidance) -> list[Sampler]:
    """The samplers to try: each solver with `steps`, or with those of GRID. InputError where an SDE has one step."""
    methods = {"euler_maruyama": "sde", "stochastic_heun": "sde", "own": "pipeline"}
    random = [solver for solver in solvers if methods.get(solver) == "sde"]
    if 1 in steps and random:
        raise InputError(
            f"--steps 1: {' and '.join(random)} need 2 or more; write more steps, or name others by --solver"
        )
    return [
        Sampler.model_validate(
            {"method": methods.get(solver, "ode"), "solver": solver, "steps": number, "guidance": guidance}
        )
        for solver in solvers
        for number in (steps or GRID[solver])
    ]


@dataclass(frozen=True)
class Pairs:
    """The conditions of one seed, float32 (N, E), with class numbers (N,), the noise key and the patient of each (of no known patient: the
    row of the bank).
    """

    conditions: np.ndarray
    classes: np.ndarray
    keys: list[tuple[int, int]]
    patients: list[str]


def pairs_of(prepared: Prepared, per_class: int, seed: int) -> Pairs:
    """`per_class` conditions of each class, chosen as a build would choose them; other seeds take others."""
    assert prepared.bank is not None
    keys = keys_from_seed(SEED)
    rows, classes, noises = [], [], []
    for number, (name, index) in enumerate(prepared.class_indices().items()):
        first = prepared.bank.span(name)[0]
        for at in range(seed * per_class, (seed + 1) * per_class):
            rows.append(first + choose(index, at, keys.conditions, name))
            classes.append(number)
            noises.append(noise_key(keys, name, at, 0))
    known = [patient for _, patient, _ in prepared.bank.facts(np.array(rows))]
    patients = [f"p {patient}" if patient else f"row {row}" for patient, row in zip(known, rows, strict=True)]
    return Pairs(prepared.bank.take(np.array(rows)), np.array(classes), noises, patients)


def probe_of(prepared: Prepared) -> LabelProbe:
    """A probe of the classes, on the bank's own rows."""
    assert prepared.bank is not None
    random = np.random.default_rng(SEED)
    rows, classes = [], []
    for number, name in enumerate(prepared.spec.classes):
        low, high = prepared.bank.span(name)
        chosen = np.arange(low, high) if high - low <= PROBE_ROWS else random.integers(low, high, PROBE_ROWS)
        rows.append(np.unique(chosen))
        classes.append(np.full(len(rows[-1]), number))
    return LabelProbe(prepared.bank.take(np.concatenate(rows)), np.concatenate(classes), len(classes))


def drawn_embeddings(
    engine: AnyEngine,
    pairs: Pairs,
    sampler: Sampler,
    batch_size: int,
    kept: Store,
    name: str,
    tick: Callable[[int], None],
) -> np.ndarray:
    """Embeddings float32 (N, E) of the tiles drawn for the pairs; read from `kept` where they were drawn before."""
    digest = hashlib.sha256(pairs.conditions.tobytes() + json.dumps([name, pairs.keys, batch_size]).encode())
    digest.update(sampler.model_dump_json().encode())
    step = PIECE_BATCHES * batch_size
    parts = []
    for start in range(0, len(pairs.keys), step):
        path = f"calibration/{digest.hexdigest()[:32]}-{start:06d}.npy"
        part = _kept(kept, path, pairs.conditions[start : start + step].shape)
        if part is None:
            part = _drawn(engine, pairs, sampler, batch_size, range(start, min(start + step, len(pairs.keys))))
            buffer = io.BytesIO()
            np.save(buffer, part)
            kept.put(path, buffer.getvalue())
        parts.append(part)
        tick(len(part))
    return np.concatenate(parts)


def _kept(kept: Store, path: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """What was drawn before; None where it was not, or is cut off."""
    try:
        found = np.load(io.BytesIO(kept.read(path)), allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return np.asarray(found) if found.shape == shape and found.dtype == np.float32 else None


def _drawn(engine: AnyEngine, pairs: Pairs, sampler: Sampler, batch_size: int, rows: range) -> np.ndarray:
    parts = []
    for start in rows[::batch_size]:
        part = slice(start, min(start + batch_size, rows.stop))
        embeddings = engine.begin(pairs.conditions[part], pairs.keys[part], sampler, embed=True).wait()[1]
        assert embeddings is not None
        parts.append(np.array(embeddings, np.float32))
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Scores:
    """Of one setting: what was seen, and under each bootstrap (B,): class agreement, cosine, kernel distance."""

    seen: np.ndarray  # (3,)
    boots: np.ndarray  # (B, 3)


class Judge:
    """Scores settings on the same pairs, with the same bootstrap weights, so that differences are paired.

    A patient drawn twice counts twice with all of its conditions, in every seed: they resemble one another.
    """

    def __init__(self, pairs: Sequence[Pairs], probe: LabelProbe) -> None:
        self._pairs, self._probe = pairs, probe
        _, who = np.unique([patient for part in pairs for patient in part.patients], return_inverse=True)
        bounds = np.cumsum([len(part.keys) for part in pairs])[:-1]
        patients = np.split(who, bounds)
        if any(len(set(part.tolist())) < 2 for part in patients):
            raise InputError("embeddings: all conditions are of one patient; calibrate needs those of several")
        self._kernels = [KernelDistance(part.conditions, own) for part, own in zip(pairs, patients, strict=True)]
        self._patients = len(np.unique(who))
        weights = patient_weights(who, np.random.default_rng(SEED), BOOTSTRAPS)
        self._weights = np.split(weights, bounds, axis=1)

    def scores(self, drawn: Sequence[np.ndarray]) -> _Scores:
        """Of one setting's embeddings, one array per seed."""
        seen, boots = [], []
        for pairs, kernel, weights, embeddings in zip(self._pairs, self._kernels, self._weights, drawn, strict=True):
            right = (self._probe.predict(embeddings) == pairs.classes).astype(np.float64)
            near = _cosine(embeddings, pairs.conditions)
            matrices = kernel.matrices(embeddings)
            total = weights.sum(axis=1, keepdims=True)
            share = weights / np.where(total > 0, total, np.nan)  # draws that leave a seed out say nothing of it
            seen.append([right.mean(), near.mean(), kernel.of(matrices)[0]])
            boots.append(np.stack([share @ right, share @ near, kernel.of(matrices, weights)], axis=1))
        return _Scores(np.mean(seen, axis=0), np.nanmean(boots, axis=0))

    def row(self, sampler: Sampler, found: _Scores, reference: _Scores) -> Row:
        """A row of the table, beside the reference."""
        at = [self._interval(found.seen[i], found.boots[:, i]) for i in range(3)]
        off = [
            self._interval((found.seen - reference.seen)[i], (found.boots - reference.boots)[:, i]) for i in range(3)
        ]
        return Row(
            sampler=sampler,
            calls_per_tile=calls_per_tile(sampler),
            tiles=sum(len(part.keys) for part in self._pairs),
            class_agreement=_rounded(found.seen[0]), class_agreement_95=at[0],
            cosine=_rounded(found.seen[1]), cosine_95=at[1],
            kernel_distance=_rounded(found.seen[2]), kernel_distance_95=at[2],
            class_agreement_off=_rounded((found.seen - reference.seen)[0]), class_agreement_off_95=off[0],
            cosine_off=_rounded((found.seen - reference.seen)[1]), cosine_off_95=off[1],
            kernel_distance_off=_rounded((found.seen - reference.seen)[2]), kernel_distance_off_95=off[2],
        )  # fmt: skip

    def _interval(self, value: float, draws: np.ndarray) -> Interval:
        """Student's, by the number of patients: percentiles of the draws are too narrow where these are few."""
        low, high = student(float(value), draws, self._patients, 0.0, (-math.inf, math.inf))
        return _rounded(low), _rounded(high)


def _rounded(value: float) -> float:
    return round(float(value), 5)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.asarray((a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def calibrate(
    prepared: Prepared,
    engine: AnyEngine,
    samplers: Sequence[Sampler],
    reference: Sampler,
    *,
    per_class: int,
    seeds: int,
    batch_size: int,
    name: str,
    kept: Store,
    tick: Callable[[int], None],
) -> Table:
    """The table of all settings beside the reference; draws per_class x classes x seeds tiles for each.

    `name` says what else decides the tiles (model, number format): embeddings kept under another name are not taken.
    """
    pairs = [pairs_of(prepared, per_class, seed) for seed in range(seeds)]
    judge = Judge(pairs, probe_of(prepared))

    def drawn(sampler: Sampler) -> list[np.ndarray]:
        return [drawn_embeddings(engine, part, sampler, batch_size, kept, name, tick) for part in pairs]

    base = judge.scores(drawn(reference))
    rows = [judge.row(sampler, judge.scores(drawn(sampler)), base) for sampler in samplers]
    return Table(guidance=reference.guidance, reference=judge.row(reference, base, base), rows=rows)
