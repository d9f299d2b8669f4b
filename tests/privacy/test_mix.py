"""Blends of several patients: exactly even, within one kind of tissue, and the same however many there are."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfactory.plan.conditions import ClassIndex
from synthfactory.privacy.mix import PATTERN, Cluster, Mixer, assigned, blended, capped, clusters_of, most_tiles

KEY = b"0123456789abcdef"


def mixer(sizes: tuple[int, ...] = (7, 12), k: int = 5, tiles: int = 3, cap: float = 0.4) -> Mixer:
    clusters, row = [], 0
    for number, patients in enumerate(sizes):
        names = [f"{number}-{n}" for n in range(patients)]
        count = patients * tiles
        clusters.append(Cluster(names, np.arange(row, row + count), np.arange(0, count + 1, tiles)))
        row += count
    return Mixer("a", tuple(clusters), k, cap, KEY)


def owner(found: Mixer, row: int) -> str:
    return _owners(found)[row]


_known: dict[
    int, tuple[Mixer, dict[int, str]]
] = {}  # with the mixer itself: an id is given anew once its object is gone


def _owners(found: Mixer) -> dict[int, str]:
    if id(found) not in _known:
        _known.clear()
        owners = {
            int(row): name
            for cluster in found.clusters
            for at, name in enumerate(cluster.names)
            for row in cluster.rows[cluster.starts[at] : cluster.starts[at + 1]]
        }
        _known[id(found)] = (found, owners)
    return _known[id(found)][1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(5, 30), min_size=1, max_size=8), st.integers(0, 10**12))
def test_a_slot_takes_k_patients_of_one_cluster_with_capped_weights(sizes: list[int], slot: int) -> None:
    made = mixer(tuple(sizes))
    blend = made.blend(slot)
    cluster = made.clusters[made.place(slot)[0]]
    owners = [owner(made, int(row)) for row in blend.rows]
    assert len(set(owners)) == 5
    assert set(owners) <= set(cluster.names)
    assert blend.weights.sum() == pytest.approx(1.0)
    assert blend.weights.min() >= 0 and blend.weights.max() <= 0.4 + 1e-12
    again = mixer(tuple(sizes)).blend(slot)
    assert np.array_equal(again.rows, blend.rows) and np.array_equal(again.weights, blend.weights)


def test_every_patient_is_used_exactly_evenly_and_the_bound_is_reached() -> None:
    made, count = mixer(), 10 * PATTERN
    uses = Counter(owner(made, int(row)) for slot in range(count) for row in made.blend(slot).rows)
    assert sum(uses.values()) == 5 * count
    for number, cluster in enumerate(made.clusters):
        mine = [uses[name] for name in cluster.names]
        assert max(mine) - min(mine) <= made.k, number
    assert max(uses.values()) <= most_tiles(made.clusters, made.k, count) <= max(uses.values()) + made.k
    rows = Counter(int(row) for slot in range(count) for row in made.blend(slot).rows)
    by_patient = Counter(owner(made, row) for row in rows)
    assert set(by_patient.values()) == {3}  # all of a patient's tiles are taken


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 40), st.integers(2, 5), st.integers(1, 60))
def test_neighbours_share_nobody_and_the_first_slots_use_all_alike(patients: int, k: int, count: int) -> None:
    made = mixer((patients,), k=k, cap=1.0)
    slots = [{owner(made, int(row)) for row in made.blend(slot).rows} for slot in range(count)]
    pairs = [one & other for one, other in pairwise(slots)]
    moved = patients // math.gcd(patients, k)  # slots after which places move on by one
    if patients >= 2 * k:
        assert all(not pair for at, pair in enumerate(pairs, 1) if at % patients and at % patients % moved)
    uses = Counter(name for slot in slots for name in slot)
    assert max(uses.values()) <= most_tiles(made.clusters, k, count)
    of_all = [uses[name] for name in made.clusters[0].names]
    if count <= moved:
        assert max(of_all) - min(of_all) <= 1
        assert max(of_all) == most_tiles(made.clusters, k, count)
    if count % patients == 0:
        assert set(of_all) == {k * count // patients}
    block = [frozenset(slot) for slot in slots[:patients]]
    assert len(set(block)) == len(block) or patients == k, "no k patients twice in a block"


def test_sets_of_earlier_versions_go_on_in_their_order() -> None:
    old = Mixer("a", mixer((30,)).clusters, 5, 0.4, KEY, strides=False)
    slots = [{owner(old, int(row)) for row in old.blend(slot).rows} for slot in range(30)]
    assert {len(one & other) for one, other in pairwise(slots)} == {4}
    new = mixer((30,))
    assert {frozenset(slot) for slot in slots} == {
        frozenset(owner(new, int(row)) for row in new.blend(slot).rows) for slot in range(30)
    }, "the same blends, in another order"
    uses = Counter(name for slot in slots[:7] for name in slot)
    assert max(uses.values()) == most_tiles(old.clusters, 5, 7, strides=False) == 5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 400))
def test_slots_of_a_cluster_are_numbered_without_a_gap(count: int) -> None:
    made = mixer((5, 9, 30))
    numbers: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for slot in range(count):
        cluster, own = made.place(slot)
        numbers[cluster].append(own)
    assert all(found == list(range(len(found))) for found in numbers.values())


def test_another_key_makes_other_blends() -> None:
    one, other = mixer(), Mixer("a", mixer().clusters, 5, 0.4, b"another key 0123")
    assert any(not np.array_equal(one.blend(slot).rows, other.blend(slot).rows) for slot in range(3))


def test_a_cluster_of_too_few_patients_and_a_cap_too_low_are_refused() -> None:
    with pytest.raises(ValueError, match="at least k patients"):
        mixer((4, 9))
    with pytest.raises(ValueError, match="must reach 1"):
        mixer(k=5, cap=0.19)


def test_capping_keeps_the_sum_and_the_order() -> None:
    assert capped(np.array([0.9, 0.05, 0.05]), 0.4) == pytest.approx([0.4, 0.3, 0.3])
    assert capped(np.array([0.5, 0.3, 0.2]), 0.6) == pytest.approx([0.5, 0.3, 0.2])
    assert capped(np.array([0.97, 0.02, 0.01]), 0.4) == pytest.approx([0.4, 0.4, 0.2])


def test_a_blend_lies_between_its_tiles() -> None:
    one, other = np.array([2.0, 0.0]), np.array([0.0, 4.0])
    assert blended(np.stack([one, other]), np.array([1.0, 0.0])) == pytest.approx([2.0, 0.0])
    middle = blended(np.stack([one, other]), np.array([0.5, 0.5]))
    assert middle == pytest.approx(3.0 * np.array([1, 1]) / np.sqrt(2))
    assert blended(np.stack([one, -2 * one]), np.array([0.5, 0.5])) == pytest.approx([-1.0, 0.0])  # directions cancel
    assert np.isfinite(blended(np.stack([one, 0 * one]), np.array([0.5, 0.5]))).all()


def test_a_patients_slides_take_turns_whatever_they_hold() -> None:
    """Each of 7 patients has a slide of 20 tiles and one of 2."""
    starts = np.arange(0, 7 * 22 + 1, 22)
    slides = np.sort(np.append(starts, starts[:-1] + 20))
    rows = np.arange(starts[-1])
    of_slides = Mixer("a", (Cluster([f"p{n}" for n in range(7)], rows, starts, slides),), 5, 0.4, KEY)
    taken = np.concatenate([of_slides.blend(slot).rows for slot in range(7 * 4)])
    owners, small = taken // 22, taken % 22 >= 20
    for patient in range(7):
        assert (owners == patient).sum() == 20 and small[owners == patient].sum() == 10
    whole = Mixer("a", (Cluster([f"p{n}" for n in range(7)], rows, starts),), 5, 0.4, KEY)
    before = np.concatenate([whole.blend(slot).rows for slot in range(7 * 4)])
    assert (before % 22 >= 20).sum() < 28


def test_blends_of_a_cluster_mix_its_sites() -> None:
    sites = np.arange(40) % 2
    index = ClassIndex([f"p{n}" for n in range(40)], np.arange(41), None, sites)
    (cluster,) = clusters_of(np.zeros(40, np.uint8), index)
    mixer = Mixer("a", (cluster,), 4, 0.4, KEY)
    taken = np.stack([mixer.blend(slot).rows for slot in range(40)])
    assert np.bincount(taken.ravel()).tolist() == [4] * 40, "as evenly as ever"
    of_one = (taken % 2).sum(axis=1)
    assert of_one.min() >= 1 and of_one.max() <= 3, "no blend is of one site alone"
    half = clusters_of((np.arange(40) >= 20).astype(np.uint8), index)[1]
    assert half.sites is not None and half.sites.tolist() == sites[20:].tolist()


def test_kinds_of_tissue_are_not_blended_and_small_kinds_are_merged() -> None:
    random = np.random.default_rng(0)
    kinds = np.eye(3, 6) * 10
    rows, patients, kind_of = [], [], []
    for patient in range(60):
        for kind in (0, 1) if patient < 58 else (0, 1, 2):  # the third kind has two patients only
            rows.append(kinds[kind] + random.standard_normal(6))
            patients.append(f"p{patient}")
            kind_of.append(kind)
    names = sorted(set(patients), key=patients.index)
    embeddings, starts = np.stack(rows), [patients.index(name) for name in names]
    index = ClassIndex(names, np.array([*starts, len(rows)]))
    found = clusters_of(assigned(lambda at: embeddings[at], index, 5, KEY), index)
    assert 2 <= len(found) <= 3
    for cluster in found:
        assert cluster.patients >= 10, "of 5 alone, every blend would be of the same 5"
        kinds_there = {kind_of[int(row)] for row in cluster.rows}
        assert not {0, 1} <= kinds_there
        for at, name in enumerate(cluster.names):
            owned = cluster.rows[cluster.starts[at] : cluster.starts[at + 1]]
            assert {patients[int(row)] for row in owned} == {name}
    assert sorted(int(row) for cluster in found for row in cluster.rows) == list(range(len(rows)))
    slides = np.arange(len(rows) + 1)  # a slide a tile
    divided = clusters_of(assigned(lambda at: embeddings[at], index, 5, KEY), ClassIndex(names, index.starts, slides))
    for cluster, whole in zip(divided, found, strict=True):
        assert np.array_equal(cluster.rows, whole.rows) and cluster.slide_starts is not None
        assert cluster.slide_starts.tolist() == list(range(len(cluster.rows) + 1))
    seven = ClassIndex(names[:7], np.arange(0, 15, 2))
    assert not assigned(lambda at: embeddings[at], seven, 5, KEY).any(), "too few for two clusters, enough for a blend"
    few = ClassIndex(names[:4], np.array([0, 2, 4, 6, 8]))
    with pytest.raises(ValueError, match="has 4 patients; a blend needs 5"):
        assigned(lambda at: embeddings[at], few, 5, KEY)
