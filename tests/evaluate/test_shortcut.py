"""What would give synthetic tiles away, and sites: seen where it is there, not seen where it is not."""

from __future__ import annotations

import numpy as np

from synthfactory.evaluate.fidelity import Tiles
from synthfactory.evaluate.shortcut import association, told_apart
from synthfactory.evaluate.texture import WIDTH, texture


def side(rows: int, shift: float, seed: int, labels: str = "ab", who: int = 0) -> Tiles:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((rows, 8)).astype(np.float32)
    classes = np.array(list(labels))[np.arange(rows) % len(labels)]
    vectors[:, 3] += shift * (classes == "a")
    return Tiles(vectors, classes, np.char.add("p", (who + np.arange(rows) // 4).astype(str)))


def test_a_sign_of_being_synthetic_is_seen_in_the_class_that_has_it() -> None:
    found = told_apart(side(400, 0.0, 1), side(400, 2.5, 2))
    assert found["a"]["value"] > 0.9 and found["a"]["interval_95"][0] > 0.8
    low, high = found["b"]["interval_95"]
    assert low < 0.5 < high


def test_few_tiles_give_no_figure_but_a_reason() -> None:
    found = told_apart(side(400, 0.0, 1), side(20, 0.0, 2))
    assert found["a"]["value"] is None
    assert "10 of 5 are needed" in found["a"]["why"]


def people(seed: int, names: range, offset: float = 0.0, tiles: int = 10) -> Tiles:
    """Tiles that look much like their patient; `offset` is a sign that all of them bear."""
    looks = np.stack([np.random.default_rng((7, name)).standard_normal(64) for name in names])
    rows = np.repeat(looks, tiles, axis=0) + 0.05 * np.random.default_rng(seed).standard_normal(
        (tiles * len(names), 64)
    )
    rows[:, 5] += offset
    return Tiles(rows.astype(np.float32), np.full(len(rows), "a"), np.repeat([f"p{name}" for name in names], tiles))


def test_a_perfect_generator_is_not_told_apart_by_whom_its_tiles_rest_on() -> None:
    """Real tiles of a patient would teach 'real' what tiles drawn from that patient are judged by."""
    for names in (range(40), range(39)):
        low, high = told_apart(people(1, range(40)), people(2, names))["a"]["interval_95"]
        assert low < 0.5 < high


def blends(seed: int, patients: int, tiles: int, k: int) -> tuple[Tiles, Tiles, list[frozenset[str]]]:
    """Real tiles, and a perfect generator's after blends of k: marginally as real ones, and each like others of the same patients."""
    random, width = np.random.default_rng(seed), 24
    looks, apart = 0.8 * random.standard_normal((patients, width)), np.sqrt(1 - 0.8**2)
    of_real = np.repeat(np.arange(patients), 4)
    real = looks[of_real] + apart * random.standard_normal((len(of_real), width))
    drawn, who = [], []
    for at in range(tiles):
        order = np.random.default_rng((seed, at // patients)).permutation(patients)
        chosen = [int(order[(at + turn) % patients]) for turn in range(k)]
        weights = random.dirichlet(np.ones(k))
        mean = weights @ looks[chosen] / np.sqrt((weights**2).sum())
        drawn.append(mean + apart * random.standard_normal(width))
        who.append([chosen[number] for number in np.argsort(-weights)])
    sides = [
        Tiles(np.asarray(rows, np.float32), np.full(len(rows), "a"), np.array([f"p{name}" for name in names]))
        for rows, names in ((real, of_real), (drawn, [each[0] for each in who]))
    ]
    return sides[0], sides[1], [frozenset(f"p{name}" for name in each) for each in who]


def test_blends_of_a_perfect_generator_are_not_told_apart_by_patients_that_they_share() -> None:
    """Of a blend in the half that judges, some of the patients taught 'drawn' in the other."""
    alone, whole = [], []
    for seed in range(16):
        real, drawn, behind = blends(seed, patients=12, tiles=300, k=3)
        alone.append(told_apart(real, drawn)["a"]["value"])
        found = told_apart(real, drawn, behind)["a"]
        assert found["n"] < 70, "48 tiles are real"
        whole.append(found["value"])
    assert np.mean(alone) > 0.55, "what it was before all patients of a blend were asked for"
    assert abs(np.mean(whole) - 0.5) < 0.04 < np.mean(alone) - 0.5
    found = told_apart(*blends(0, patients=14, tiles=200, k=12))["a"]
    assert found["value"] is None
    assert "a blend counts where all of its patients are in one half" in found["why"]


def test_a_sign_is_seen_although_both_sides_are_of_the_same_patients() -> None:
    found = told_apart(people(1, range(40)), people(2, range(39), offset=2.0))["a"]
    assert found["interval_95"][0] > 0.5


def test_many_tiles_of_a_patient_do_not_make_a_sign_clearer() -> None:
    values = [
        told_apart(people(1, range(60), tiles=each), people(2, range(60), offset=0.8, tiles=each))["a"]["value"]
        for each in (1, 20)
    ]
    assert abs(values[0] - values[1]) < 0.2


def test_site_against_class_is_0_by_chance_and_1_where_one_decides_the_other() -> None:
    random = np.random.default_rng(0)
    classes, patients = random.choice(["x", "y", "z"], 900), np.arange(900)
    apart = association(classes, random.choice(["s1", "s2", "s3"], 900), patients)
    assert apart["value"] < 0.08
    bound = association(classes, np.char.add("site-", classes), patients)
    assert bound["value"] > 0.99
    assert bound["largest_site"]["x"] == {"site": "site-x", "share_of_patients": 1.0}
    repeated = association(
        np.repeat(classes, 5), np.repeat(random.choice(["s1", "s2"], 900), 5), np.repeat(patients, 5)
    )
    assert repeated["patients"] == 900, "a patient counts once, however many tiles"
    assert association(classes, np.full(900, "s1"), patients)["value"] is None
    all_classes = association(np.tile(["x", "y", "z"], 12), np.tile(["s1", "s2"], 18), np.repeat(np.arange(12), 3))
    assert all_classes["why"].startswith("not measurable with n = 12 patients"), (
        "36 pairs of patient and class are no 36 patients"
    )
    few = association(classes[:20], np.char.add("site-", classes[:20]), patients[:20])
    assert few["why"] == "not measurable with n = 20 patients; 30 are needed"


def test_the_interval_of_site_against_class_holds_by_patients() -> None:
    """Two sites, of which each gives four fifths of one class: Cramer's V is 0.6."""
    random, held, widths = np.random.default_rng(1), 0, {60: [], 600: []}
    for people in (60, 600):
        for _ in range(60):
            classes = np.repeat(["x", "y"], people // 2)
            sites = np.where((random.random(people) < 0.8) == (classes == "x"), "s1", "s2")
            found = association(classes, sites, np.arange(people))
            low, high = found["interval_95"]
            assert low <= found["value"] <= high
            held += low <= 0.6 <= high
            widths[people].append(high - low)
    assert held >= 0.9 * 120
    assert np.mean(widths[600]) < 0.5 * np.mean(widths[60])
    many = association(np.repeat(classes, 5), np.repeat(sites, 5), np.repeat(np.arange(600), 5))
    assert many == found, "a patient's tiles add nothing"


def test_descriptors_do_not_depend_on_how_a_tile_is_turned_and_tell_stain_and_pattern() -> None:
    random = np.random.default_rng(5)
    tile = np.clip(180 + 40 * random.standard_normal((64, 64, 1)) * np.array([1, 0.8, 0.5]), 0, 255).astype(np.uint8)
    found = texture(tile)
    assert found.shape == (WIDTH,) and found.dtype == np.float32 and np.isfinite(found).all()
    for turned in (np.rot90(tile), tile[:, ::-1], tile.transpose(1, 0, 2)):
        assert np.abs(texture(turned) - found).max() < 1e-4
    assert np.abs(texture((tile * [0.8, 1, 1]).astype(np.uint8)) - found).max() > 0.05
    stripes = tile.copy()
    stripes[::4] //= 2
    assert np.abs(texture(stripes) - found).max() > 0.05
    assert np.isfinite(texture(np.full((64, 64, 3), 255, np.uint8))).all(), "glass alone"


def test_few_drawn_tiles_are_shared_out_evenly_whatever_the_split() -> None:
    """Twenty drawn tiles of ten patients, and forty patients of whom nothing was drawn: ten of them on either side, by any seed."""
    random = np.random.default_rng(0)
    real = Tiles(
        random.standard_normal((200, 4)).astype(np.float32),
        np.full(200, "a"),
        np.array([f"p{n // 4}" for n in range(200)]),
    )
    drawn = Tiles(
        random.standard_normal((20, 4)).astype(np.float32),
        np.full(20, "a"),
        np.array([f"p{n // 2}" for n in range(20)]),
    )
    assert all(told_apart(real, drawn, seed=seed)["a"]["value"] is not None for seed in range(10))
