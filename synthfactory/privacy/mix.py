"""Conditions blended from tiles of k patients: not a privacy guarantee (attacks on conditions find nearly all members).

Slots of a class are dealt to its morphology clusters in proportion to the clusters' patients, by a keyed pattern of 64 places. Within a
cluster of P patients, slot j lies in block j // P: every block is a keyed shuffle of the patients (spread over their sites, as in
`plan/conditions.py`), of which its first slot takes the first k, the next the k after those, and so on, around the end; before the same k
would come again, places move on by one. So slots of a cluster that follow each other share nobody where P >= 2 k (but at a block's end,
and where places moved on), the first slots of a block use all its patients alike (none more than once above another, but where places moved
on), each patient is in exactly k of every P slots, patients of a slot are distinct, and nothing depends on how many slots there are. A
patient's slides, and a slide's tiles, are taken in turn as in `plan/conditions.py`; weights are a keyed Dirichlet draw below the cap.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from synthfactory.embeddings.vectors import unit
from synthfactory.plan.conditions import ClassIndex
from synthfactory.plan.keyed import entry, uniforms

PATTERN = 64  # slots after which the dealing to clusters repeats
MAX_CLUSTERS = 8
SPREAD = 2  # patients of a cluster, in units of k, where there are so many
LEARNT_ROWS = 20_000  # of a class, from which its clusters are found
PIECE_BYTES = 16 << 20

Take = Callable[[np.ndarray], np.ndarray]  # rows of a class -> their embeddings, float32 (n, E)


@dataclass(frozen=True)
class Cluster:
    """One kind of tissue within a class, and who has tiles of it: patient p's are rows[starts[p] : starts[p + 1]].

    `slide_starts` as in ClassIndex, within `rows`; `sites` too.
    """

    names: Sequence[str] = field(repr=False)
    rows: np.ndarray = field(repr=False)
    starts: np.ndarray = field(repr=False)
    slide_starts: np.ndarray | None = field(default=None, repr=False)
    sites: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def index(self) -> ClassIndex:
        """The cluster as a class of its own: positions in `rows` by patient and slide."""
        return ClassIndex(self.names, self.starts, self.slide_starts, self.sites)

    @property
    def patients(self) -> int:
        """How many they are."""
        return len(self.names)


@dataclass(frozen=True)
class Blend:
    """Rows int64 (k,) of k distinct patients, and their weights (k,), which sum to 1."""

    rows: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Mixer:
    """The blends of one class. k patients each, no weight above `cap`."""

    name: str
    clusters: tuple[Cluster, ...]
    k: int
    cap: float
    key: bytes
    strides: bool = True  # False: slots begin one patient after the slot before, as in sets of earlier versions

    def __post_init__(self) -> None:
        if not self.clusters or min(cluster.patients for cluster in self.clusters) < self.k or self.cap * self.k < 1:
            raise ValueError("every cluster needs at least k patients, and k weights of at most `cap` must reach 1")

    @cached_property
    def _pattern(self) -> np.ndarray:
        """Cluster of each place of the pattern, shuffled."""
        places = _places(self.clusters)
        dealt = np.repeat(np.arange(len(places)), places)
        return np.array([dealt[self._entry("pattern", PATTERN, at)] for at in range(PATTERN)])

    def _entry(self, what: str, count: int, position: int) -> int:
        return entry(self.key, self._name(what), count, position)

    def _name(self, what: str) -> str:
        return f"mix:{what}:{self.name}"

    def place(self, slot: int) -> tuple[int, int]:
        """(cluster, number of the slot among the cluster's own)."""
        block, at = divmod(slot, PATTERN)
        cluster = int(self._pattern[at])
        mine = self._pattern == cluster
        return cluster, block * int(mine.sum()) + int(mine[:at].sum())

    def blend(self, slot: int) -> Blend:
        """The blend of a slot."""
        number, own = self.place(slot)
        index = self.clusters[number].index
        block, at = divmod(own, len(index.patients))
        order, count = self._name(f"patients:{number}:{block}"), len(index.patients)
        first = at * self.k + at // (count // math.gcd(count, self.k)) if self.strides else at
        whose = [index.patient(self.key, order, (first + turn) % count) for turn in range(self.k)]
        rows = [self._tile(number, patient, block * self.k + turn) for turn, patient in enumerate(whose)]
        exponentials = -np.log(uniforms(self.key, f"mix:weights:{slot}:{self.name}", self.k))  # Dirichlet(1, ..., 1)
        return Blend(np.array(rows, np.int64), capped(exponentials, self.cap))

    def _tile(self, cluster: int, patient: int, turn: int) -> int:
        """A patient's slides, and each slide's tiles, in a keyed order, one after the other, shuffled anew every time around."""
        found = self.clusters[cluster]

        def order(what: str, count: int, at: int) -> int:
            kind, _, cycle = what.rpartition(":")
            return self._entry(f"{kind}:{cluster}:{cycle}:{found.names[patient]}", count, at)

        return int(found.rows[found.index.row(patient, turn, order)])


def _places(clusters: Sequence[Cluster]) -> np.ndarray:
    """Places of the pattern by cluster: largest remainders of the clusters' patients, at least one place each."""
    sizes = np.array([cluster.patients for cluster in clusters], np.float64)
    places = np.maximum(np.floor(sizes / sizes.sum() * PATTERN).astype(int), 1)
    order = np.argsort(-(sizes / sizes.sum() * PATTERN - places), kind="stable")
    for number in range(PATTERN - int(places.sum())):
        places[order[number % len(order)]] += 1
    while places.sum() > PATTERN:  # where many small clusters were raised to one place
        places[places.argmax()] -= 1
    return np.asarray(places)


def most_tiles(clusters: Sequence[Cluster], k: int, count: int, *, strides: bool = True) -> int:
    """In how many of the first `count` slots any one patient is, at most, whatever the key; `strides` as of Mixer."""
    uses: Counter[str] = Counter()
    for cluster, places in zip(clusters, _places(clusters).tolist(), strict=True):
        slots = count // PATTERN * places + min(places, count % PATTERN)
        blocks, rest = divmod(slots, cluster.patients)
        # In so many slots everybody is used equally often; then the same k would come again.
        each = cluster.patients // math.gcd(cluster.patients, k)
        rounds, more = divmod(rest, each)
        evenly = rounds * (k * each // cluster.patients) + -(-more * k // cluster.patients)
        uses.update(dict.fromkeys(cluster.names, k * blocks + (evenly if strides else min(k, rest))))
    return max(uses.values())


def capped(weights: np.ndarray, cap: float) -> np.ndarray:
    """Weights that sum to 1, none above `cap`: what is above is given to the others in proportion, until it fits."""
    found = weights / weights.sum()
    for _ in range(len(found)):
        over = found > cap
        if not over.any():
            break
        spare = float((found[over] - cap).sum())
        found[over] = cap
        below = found < cap
        found[below] += spare * found[below] / found[below].sum()
    return np.asarray(found)


def blended(embeddings_kE: np.ndarray, weights_k: np.ndarray) -> np.ndarray:
    """float32 (E,): the weighted mean of the directions, brought to the weighted mean of the lengths.

    Where the directions cancel there is nothing between them on the sphere: the plain weighted mean then.
    """
    wide, weights = embeddings_kE.astype(np.float64), weights_k[:, None]
    lengths = np.sqrt((wide * wide).sum(axis=1))[:, None]
    direction = (weights * wide / np.maximum(lengths, 1e-300)).sum(axis=0)
    length = float(np.sqrt((direction * direction).sum()))
    if length < 1e-6:
        return np.asarray((weights * wide).sum(axis=0), np.float32)
    return np.asarray(direction / length * float((weights * lengths).sum()), np.float32)


def assigned(take: Take, index: ClassIndex, k: int, key: bytes, spread: int = SPREAD) -> np.ndarray:
    """The cluster of each row of a class, uint8 (N,): k-means on directions, merged until each cluster has tiles of at least 2 k patients
    (else all blends of a cluster could be of the same k, each of them in every one), or there is one. Sets of before had a `spread` of 1.

    At most 8, and about one for every 4 k patients. The last bits of arithmetic may decide where a row between two clusters goes: keep
    what comes back. ValueError where the class has fewer than k patients.
    """
    count, everyone = int(index.starts[-1]), len(index.patients)
    if everyone < k:
        raise ValueError(f"has {everyone} patients; a blend needs {k}")
    learnt = np.arange(count)
    if count > LEARNT_ROWS:
        learnt = np.sort(_random(key).choice(count, LEARNT_ROWS, replace=False))
    centres = _kmeans(unit(take(learnt)).astype(np.float64), max(1, min(MAX_CLUSTERS, everyone // (4 * k))), key)
    while True:
        nearest = np.empty(count, np.uint8)
        step = max(1, PIECE_BYTES // (centres.shape[1] * 8))
        for low in range(0, count, step):
            rows = np.arange(low, min(count, low + step))
            nearest[rows] = _nearest(unit(take(rows)), centres)
        behind = [cluster.patients for cluster in clusters_of(nearest, index, len(centres))]
        if min(behind) >= spread * k or len(centres) == 1:
            return nearest
        centres = np.delete(centres, int(np.argmin(behind)), axis=0)


def clusters_of(assigned_N: np.ndarray, index: ClassIndex, count: int | None = None) -> tuple[Cluster, ...]:
    """The clusters of a class, from each row's number."""
    found = []
    for number in range(int(assigned_N.max()) + 1 if count is None else count):
        rows = np.flatnonzero(assigned_N == number)
        owners = np.searchsorted(index.starts, rows, side="right") - 1
        there, starts = np.unique(owners, return_index=True)
        slides = None
        if index.slide_starts is not None:
            of_slide = np.searchsorted(index.slide_starts, rows, side="right")
            slides = np.append(np.unique(of_slide, return_index=True)[1], len(rows))
        names = [index.patients[at] for at in there]
        sites = None if index.sites is None else np.unique(index.sites[there], return_inverse=True)[1]
        found.append(Cluster(names, rows, np.append(starts, len(rows)), slides, sites))
    return tuple(found)


def _random(key: bytes) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16].ljust(16, b"-"), "<u8").astype(np.uint64)))


def _off(directions_NE: np.ndarray, centres_CE: np.ndarray) -> np.ndarray:
    """Squared distances (N, C) of unit vectors to centres."""
    return np.asarray(np.maximum(1.0 + (centres_CE**2).sum(1) - 2 * directions_NE @ centres_CE.T, 0.0))


def _nearest(directions_NE: np.ndarray, centres_CE: np.ndarray) -> np.ndarray:
    return np.asarray(_off(directions_NE, centres_CE).argmin(1))


def _kmeans(directions_NE: np.ndarray, count: int, key: bytes, rounds: int = 25) -> np.ndarray:
    """Lloyd's algorithm from keyed starts that are far apart (k-means++)."""
    random = _random(key)
    centres = directions_NE[[int(random.integers(len(directions_NE)))]]
    while len(centres) < count:
        off = _off(directions_NE, centres).min(1)
        if off.sum() < 1e-9:
            break
        centres = np.vstack([centres, directions_NE[int(random.choice(len(off), p=off / off.sum()))]])
    for _ in range(rounds):
        nearest = _nearest(directions_NE, centres)
        moved = np.stack(
            [directions_NE[nearest == n].mean(0) if (nearest == n).any() else centres[n] for n in range(len(centres))]
        )
        if np.allclose(moved, centres, atol=1e-9):
            break
        centres = moved
    return np.asarray(centres)
