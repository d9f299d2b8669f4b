"""Conditions blended from tiles of k patients: not a privacy guarantee (an attack by nearest condition finds members).

Slots of a class are dealt to its morphology clusters in proportion to the clusters' patients, by a keyed pattern of 64 places. Within a
cluster of P patients, slot j lies in block j // P at place j % P: every block is a keyed shuffle of the patients, and a slot takes the k
that follow its place, around the end. So each patient is in exactly k of every P slots of the cluster, patients of a slot are distinct, and
nothing depends on how many slots there are. Tiles of a patient are taken in turn; weights are a keyed Dirichlet draw below the cap.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PATTERN = 64  # slots after which the dealing to clusters repeats
MAX_CLUSTERS = 8
LEARNT_ROWS = 20_000  # of a class, from which its clusters are found


def _random(key: bytes, *name: object) -> np.random.Generator:
    text = ":".join(map(str, name))
    digest = hashlib.blake2b(text.encode(), digest_size=16, key=key, person=b"sf-mix").digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64)))


@dataclass(frozen=True)
class Cluster:
    """One kind of tissue within a class: the patients who have tiles of it, in canonical order, and the rows of each."""

    names: tuple[str, ...]
    rows: tuple[np.ndarray, ...]

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

    def __post_init__(self) -> None:
        if not self.clusters or min(cluster.patients for cluster in self.clusters) < self.k or self.cap * self.k < 1:
            raise ValueError("every cluster needs at least k patients, and k weights of at most `cap` must reach 1")

    @cached_property
    def _pattern(self) -> np.ndarray:
        """Cluster of each place of the pattern: largest remainders of the clusters' patients, at least one place each, shuffled."""
        sizes = np.array([cluster.patients for cluster in self.clusters], np.float64)
        places = np.maximum(np.floor(sizes / sizes.sum() * PATTERN).astype(int), 1)
        order = np.argsort(-(sizes / sizes.sum() * PATTERN - places), kind="stable")
        for number in range(PATTERN - int(places.sum())):
            places[order[number % len(order)]] += 1
        while places.sum() > PATTERN:  # where many small clusters were raised to one place
            places[places.argmax()] -= 1
        dealt = np.repeat(np.arange(len(places)), places)
        return np.asarray(_random(self.key, "pattern", self.name).permutation(dealt))

    def place(self, slot: int) -> tuple[int, int]:
        """(cluster, number of the slot among the cluster's own)."""
        block, at = divmod(slot, PATTERN)
        cluster = int(self._pattern[at])
        mine = self._pattern == cluster
        return cluster, block * int(mine.sum()) + int(mine[:at].sum())

    def blend(self, slot: int) -> Blend:
        """The blend of a slot."""
        number, own = self.place(slot)
        cluster = self.clusters[number]
        block, at = divmod(own, cluster.patients)
        order = _random(self.key, "patients", self.name, number, block).permutation(cluster.patients)
        chosen = order[(at + np.arange(self.k)) % cluster.patients]
        rows = [self._tile(number, int(patient), block * self.k + turn) for turn, patient in enumerate(chosen)]
        weights = capped(_random(self.key, "weights", self.name, slot).dirichlet(np.ones(self.k)), self.cap)
        return Blend(np.array(rows, np.int64), weights)

    def _tile(self, cluster: int, patient: int, turn: int) -> int:
        """A patient's tiles in a keyed order, one after the other, shuffled anew every time around."""
        rows = self.clusters[cluster].rows[patient]
        cycle, at = divmod(turn, len(rows))
        return int(rows[_random(self.key, "tiles", self.name, cluster, patient, cycle).permutation(len(rows))[at]])

    def tiles_per_patient(self, count: int) -> int:
        """In how many of the first `count` slots any one patient is, at most: exact up to which patients the last block begins with."""
        uses: Counter[str] = Counter()
        for number, cluster in enumerate(self.clusters):
            mine = self._pattern == number
            slots = count // PATTERN * int(mine.sum()) + int(mine[: count % PATTERN].sum())
            most = self.k * (slots // cluster.patients) + min(self.k, slots % cluster.patients)
            uses.update(dict.fromkeys(cluster.names, most))
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

    ValueError where the directions cancel: opposite tiles have nothing between them.
    """
    lengths = np.linalg.norm(embeddings_kE.astype(np.float64), axis=1)
    direction = weights_k @ (embeddings_kE / lengths[:, None])
    length = float(np.linalg.norm(direction))
    if length < 1e-6:
        raise ValueError("the directions of these tiles cancel")
    return np.asarray(direction / length * (weights_k @ lengths), np.float32)


def clustered(embeddings_NE: np.ndarray, patients_N: Sequence[str], k: int, key: bytes) -> tuple[Cluster, ...]:
    """Clusters of a class's rows by k-means on directions, merged until each has tiles of at least k patients.

    At most 8, and about one for every 4 k patients. ValueError where the class has fewer than k patients.
    """
    everyone = sorted(set(patients_N))
    if len(everyone) < k:
        raise ValueError(f"has {len(everyone)} patients; a blend needs {k}")
    directions = embeddings_NE / np.maximum(np.linalg.norm(embeddings_NE, axis=1, keepdims=True), 1e-12)
    learnt = directions.astype(np.float64)
    if len(learnt) > LEARNT_ROWS:
        learnt = learnt[_random(key, "learnt").choice(len(learnt), LEARNT_ROWS, replace=False)]
    centres = _kmeans(learnt, max(1, min(MAX_CLUSTERS, len(everyone) // (4 * k))), key)
    owners = np.asarray(patients_N)
    while True:
        nearest = _nearest(directions, centres)
        behind = [len(set(owners[nearest == number])) for number in range(len(centres))]
        if min(behind) >= k:
            break
        centres = np.delete(centres, int(np.argmin(behind)), axis=0)
    found = []
    for number in range(len(centres)):
        rows = np.flatnonzero(nearest == number)
        names = owners[rows]
        there = sorted(set(names.tolist()))
        found.append(Cluster(tuple(there), tuple(rows[names == name] for name in there)))
    return tuple(found)


def _off(directions_NE: np.ndarray, centres_CE: np.ndarray) -> np.ndarray:
    """Squared distances (N, C) of unit vectors to centres."""
    return np.asarray(np.maximum(1.0 + (centres_CE**2).sum(1) - 2 * directions_NE @ centres_CE.T, 0.0))


def _nearest(directions_NE: np.ndarray, centres_CE: np.ndarray) -> np.ndarray:
    return np.asarray(_off(directions_NE, centres_CE).argmin(1))


def _kmeans(directions_NE: np.ndarray, count: int, key: bytes, rounds: int = 25) -> np.ndarray:
    """Lloyd's algorithm from keyed starts that are far apart (k-means++)."""
    random = _random(key, "clusters")
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
