"""Utility against known truth: what drawn tiles are worth is seen, what they are not worth is not, and nothing is tuned on the test."""

from __future__ import annotations

import numpy as np
import pytest

from synthfactory.evaluate import utility
from synthfactory.evaluate.calibration import calibration_error
from synthfactory.evaluate.fidelity import Tiles
from synthfactory.evaluate.probes import FOLDS, Lesson, folds, learn, tune
from synthfactory.evaluate.utility import (
    BOTH,
    FREE,
    SYNTHETIC,
    Augmented,
    Outcome,
    Scores,
    Trial,
    even,
    lessons,
    rarest,
    run_trial,
)
from synthfactory.run import evaluating, worth
from synthfactory.run.eval_tiles import augmentation
from synthfactory.run.worth import leave_site_out

WIDTH = 12
CENTRES = np.random.default_rng(1).standard_normal((4, WIDTH)) * 1.1
NAMES = ("common", "other", "seldom", "rare")


def cohort(counts: list[int], seed: int, each: int = 4, patient: float = 0.9, start: int = 0) -> Tiles:
    """Tiles around the class's centre: patients differ by `patient`, tiles of one patient by less."""
    random = np.random.default_rng(seed)
    rows, labels, groups = [], [], []
    for label, count in enumerate(counts):
        people = -(-count // each)
        offsets = np.repeat(patient * random.standard_normal((people, WIDTH)), each, axis=0)[:count]
        rows.append(CENTRES[label] + offsets + 0.5 * random.standard_normal((count, WIDTH)))
        labels.append(np.full(count, label))
        groups.append(start + len(NAMES) * np.repeat(np.arange(people), each)[:count] + label)
    return Tiles(np.concatenate(rows).astype(np.float32), np.concatenate(labels), np.concatenate(groups))


REAL, TEST = cohort([200, 120, 24, 8], 2), cohort([200] * 4, 3, start=100_000)
IDEAL = cohort([120] * 4, 4, each=1, start=200_000)


def trial(drawn: Tiles) -> Trial:
    random = np.random.default_rng(5)
    of_row = np.repeat(np.flatnonzero(REAL.classes > 1), 4)
    more = REAL.embeddings[of_row] + 0.05 * random.standard_normal((len(of_row), WIDTH)).astype(np.float32)
    return Trial(NAMES, REAL, drawn, TEST, Augmented(more, of_row), (frozenset(),) * len(drawn))


@pytest.fixture(scope="module")
def ideal() -> tuple[Trial, dict[str, Outcome]]:
    made = trial(IDEAL)
    return made, run_trial(made, 2)


def test_tiles_of_new_patients_gain_on_the_rarest_classes_over_all_that_is_free(
    ideal: tuple[Trial, dict[str, Outcome]],
) -> None:
    made, found = ideal
    scores, rare = Scores(made), rarest(made)
    assert [NAMES[at] for at in rare] == ["seldom", "rare"]
    best = scores.best_free(found, rare)
    assert best in FREE
    gain = scores.gain(found[BOTH], found[best], rare)
    assert gain["value"] > 0.03
    assert gain["interval_95"][0] > 0
    assert scores.ratio(found[SYNTHETIC], found["real only"])["interval_95"][1] > 0.97


def test_tiles_that_are_what_one_has_already_gain_nothing() -> None:
    again = np.random.default_rng(6).choice(len(REAL), 480)
    made = trial(REAL.of(again))
    found = run_trial(made, 1)
    scores = Scores(made)
    gain = scores.gain(found[BOTH], found[scores.best_free(found, range(4))], range(4))
    assert gain["interval_95"][0] < 0.005


def test_labels_that_were_swapped_are_caught_by_the_recall_of_their_classes() -> None:
    swapped = Tiles(IDEAL.embeddings, np.array([1, 0, 2, 3])[IDEAL.classes], IDEAL.groups)
    made = trial(swapped)
    found = run_trial(made, 1)
    of = Scores(made).of(found[SYNTHETIC], rarest(made))
    assert of["recall"]["common"]["value"] < 0.3
    assert of["recall"]["other"]["value"] < 0.3
    assert of["recall"]["seldom"]["value"] > 0.6
    assert of["recall"]["common"]["interval_95"][1] < 0.5


def test_nothing_is_tuned_on_the_test(ideal: tuple[Trial, dict[str, Outcome]]) -> None:
    made, found = ideal
    nonsense = Tiles(made.test.embeddings[::-1] * 3, np.roll(made.test.classes, 77), made.test.groups)
    again = run_trial(Trial(NAMES, made.real, made.drawn, nonsense, made.augmented, made.sources), 2)
    assert {name: each.chosen for name, each in again.items()} == {name: each.chosen for name, each in found.items()}


def test_no_patient_teaches_and_judges_in_one_fold_and_the_only_patient_of_a_class_always_teaches() -> None:
    classes = np.repeat([0, 1, 2], [40, 12, 5])
    patients = np.concatenate([np.repeat(np.arange(10), 4), np.repeat(np.arange(10, 13), 4), np.full(5, 99)])
    seen = np.zeros(len(classes), int)
    for taught, judged in folds(patients, classes, 0):
        assert not set(patients[taught]) & set(patients[judged])
        assert len(taught) + len(judged) == len(classes)
        assert 2 in classes[taught]
        assert set(classes[judged]) == {0, 1}, "classes of three patients and more are judged in every fold"
        seen[judged] += 1
    assert (seen[classes < 2] == 1).all() and (seen[classes == 2] == 0).all()
    assert FOLDS == 3


def test_validation_wants_two_patients_of_some_class() -> None:
    lone = Lesson(np.zeros((4, 2)), np.array([0, 0, 1, 1]), np.ones(4))
    with pytest.raises(ValueError, match="two patients of some class"):
        tune(lambda rows, option, random: lone, (None,), lone, np.array([0, 0, 1, 1]), 2, 0)


def test_free_baselines_make_classes_count_alike() -> None:
    made = trial(IDEAL)
    rows = np.arange(len(REAL))
    random = np.random.default_rng(0)
    for name in FREE[1:]:
        teach, options = lessons(made)[name]
        lesson = teach(rows, options[0], random)
        totals = np.bincount(lesson.classes, lesson.weights)
        assert totals.max() / totals.min() < 1.35, name
        assert len(lesson.weights) == len(lesson.classes) == len(lesson.embeddings)
    smote = lessons(made)["SMOTE"][0](rows, 3, random)
    rare = smote.embeddings[len(REAL) :][smote.classes[len(REAL) :] == 3]
    own = REAL.embeddings[REAL.classes == 3]
    assert len(rare) == 192
    assert (rare.min(axis=0) >= own.min(axis=0) - 1e-5).all() and (rare.max(axis=0) <= own.max(axis=0) + 1e-5).all()


def test_a_blend_counts_for_each_of_its_two_classes_by_its_share() -> None:
    """Tiles of class c lie at c: so each blend lies where its two labels' weights say."""
    classes = np.repeat([0, 1, 2], [30, 9, 4])
    real = Tiles(classes[:, None].astype(float), classes, np.arange(43))
    lesson = utility.mixup(real, 0.4, np.random.default_rng(0))
    count = (len(lesson.classes) - len(real)) // 2
    first, second = (slice(len(real) + at * count, len(real) + (at + 1) * count) for at in (0, 1))
    assert (lesson.embeddings[first] == lesson.embeddings[second]).all()
    assert lesson.weights[first] + lesson.weights[second] == pytest.approx(np.ones(count))
    apart = lesson.classes[first] != lesson.classes[second]
    assert apart.sum() > 20 and np.abs(lesson.weights[first][apart] - 0.5).max() > 0.2
    told = lesson.weights[first] * lesson.classes[first] + lesson.weights[second] * lesson.classes[second]
    assert told == pytest.approx(lesson.embeddings[first][:, 0])
    assert (lesson.embeddings[: len(real)] == real.embeddings).all()
    assert (lesson.classes[: len(real)] == classes).all()


def test_on_an_even_cohort_what_is_free_still_has_a_copy_of_each_tile() -> None:
    classes = np.repeat([0, 1, 2], 40)
    plan = augmentation(classes, 3000)
    assert sorted(plan[:, 0].tolist()) == list(range(120)) and set(plan[:, 1].tolist()) == {0}
    few = augmentation(classes, 30)
    assert np.bincount(classes[few[:, 0]]).tolist() == [10, 10, 10]
    assert set(np.diff(few[few[:, 0] < 40, 0]).tolist()) == {4}, "of tiles all over a class, not of its first patients"
    assert np.bincount(np.repeat([0, 1], [100, 10])[augmentation(np.repeat([0, 1], [100, 10]), 3000)[:, 0]])[1] == 100
    even_cohort = REAL.of(np.concatenate([np.flatnonzero(REAL.classes == label)[:24] for label in range(3)]))
    more = Augmented(even_cohort.embeddings + 9, np.arange(72))
    lesson = utility.oversampled(even_cohort, np.arange(72), more, 1.0, np.random.default_rng(0))
    assert np.bincount(lesson.classes).tolist() == [48, 48, 48]
    anew = {row.tobytes() for row in more.embeddings}
    assert sum(row.tobytes() in anew for row in lesson.embeddings) == 72


def test_what_was_augmented_from_a_patient_left_out_teaches_nothing() -> None:
    made = trial(IDEAL)
    kept = np.flatnonzero(REAL.groups % 3 != 0)
    teach, options = lessons(made)["oversampled, stained anew"]
    lesson = teach(kept, options[0], np.random.default_rng(0))
    allowed = {row.tobytes() for row in REAL.embeddings[kept]} | {
        row.tobytes() for row in made.augmented.embeddings[np.isin(made.augmented.of_row, kept)]
    }
    assert {row.tobytes() for row in np.asarray(lesson.embeddings, np.float32)} <= allowed


def test_a_probe_gives_no_chance_to_what_it_never_saw_and_weights_are_obeyed() -> None:
    x = np.array([[0.0], [0.1], [1.0], [1.1]])
    probe = learn(Lesson(x, np.array([0, 0, 2, 2]), np.ones(4)))[-1]
    found = probe.probabilities(x, 4)
    assert found[:, [1, 3]].max() == 0
    assert found.argmax(axis=1).tolist() == [0, 0, 2, 2]
    heavy = learn(Lesson(np.zeros((4, 1)), np.array([0, 0, 0, 1]), np.array([1, 1, 1, 9.0])))[-1]
    assert heavy.probabilities(np.zeros((1, 1)), 2)[0, 1] == pytest.approx(0.75, abs=0.05)


def test_calibration_error_of_known_predictors() -> None:
    classes = np.repeat([0, 1], 500)
    sure = np.tile([1.0, 0.0], (1000, 1))
    assert calibration_error(sure, classes) == pytest.approx(0.5)
    honest = np.tile([0.5, 0.5], (1000, 1))
    assert calibration_error(honest, classes) == pytest.approx(0.0, abs=1e-12)
    assert even(np.array([0, 0, 0, 1])).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])


def test_the_calibration_error_that_is_reported_is_that_of_the_probabilities() -> None:
    """Nine tenths sure and right in six of ten: 0.3 off in one class, nothing in the other; in a second seed 0.4 and 0.1."""
    right = np.tile(np.repeat([True, False], [6, 4]), 20)
    classes = np.repeat([0, 1], 100)
    wins = np.where(right, classes, 1 - classes)

    def sure(of_first: float, of_second: float) -> np.ndarray:
        p = np.where(classes == 0, of_first, of_second)
        return np.stack([np.where(wins == label, p, 1 - p) for label in (0, 1)], axis=1)

    test = Tiles(np.zeros((200, 1)), classes, np.arange(200) // 2)
    made = Trial(("a", "b"), test, test, test)
    seeds = np.stack([sure(0.9, 0.6), sure(1.0, 0.7)])
    figure = Scores(made).of(Outcome(seeds, ()), ())["calibration_error"]
    assert figure["value"] == pytest.approx(np.mean([(0.3 + 0.0) / 2, (0.4 + 0.1) / 2]))
    assert figure["value"] == pytest.approx(np.mean([calibration_error(each, classes) for each in seeds]))
    low, high = figure["interval_95"]
    assert 0 <= low < figure["value"] < high < 0.4
    twice = Tiles(np.zeros((400, 1)), np.tile(classes, 2), np.tile(test.groups, 2))
    again = Scores(Trial(("a", "b"), twice, twice, twice)).of(Outcome(np.tile(seeds, (1, 2, 1)), ()), ())
    assert again["calibration_error"]["interval_95"] == pytest.approx((low, high)), "by patients, not by tiles"
    few = Tiles(np.zeros((204, 1)), np.append(classes, [2] * 4), np.append(test.groups, np.arange(100, 104)))
    wrong = np.pad(np.concatenate([seeds, np.tile([1.0, 0.0], (2, 4, 1))], axis=1), ((0, 0), (0, 0), (0, 1)))
    counted = Scores(Trial(("a", "b", "c"), few, few, few)).of(Outcome(wrong, ()), ())["calibration_error"]
    assert counted["value"] == pytest.approx(figure["value"]), "a class of four patients counts in no mean"


@pytest.mark.parametrize("people", [20, 200])
def test_the_interval_of_the_calibration_error_holds(people: int) -> None:
    """Always 0.9 sure, right in seven of ten; patients are alike in two tiles of three."""
    random, held = np.random.default_rng(4), 0
    for _ in range(100):
        classes = np.repeat([0, 1], 3 * people)
        chance = np.repeat(random.random(2 * people) < 0.7, 3)
        right = np.where(random.random(6 * people) < 2 / 3, chance, random.random(6 * people) < 0.7)
        first = np.where(right == (classes == 0), 0.9, 0.1)
        test = Tiles(np.zeros((6 * people, 1)), classes, np.arange(6 * people) // 3)
        outcome = Outcome(np.stack([first, 1 - first], axis=1)[None], ())
        low, high = Scores(Trial(("a", "b"), test, test, test)).of(outcome, ())["calibration_error"]["interval_95"]
        held += low <= 0.2 <= high
    assert held >= 90


@pytest.mark.parametrize("people", [10, 50])
def test_a_calibrated_arm_is_not_called_miscalibrated(people: int) -> None:
    """Six Gaussian classes and their true posterior: the error of few tiles is above 0, and its interval holds 0."""
    random, held, values = np.random.default_rng(3), 0, []
    for _ in range(40):
        classes = np.repeat(np.arange(6), people)
        logits = 1.2 * (1.2 * np.eye(6)[classes] + random.standard_normal((6 * people, 6)))
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        test = Tiles(np.zeros((6 * people, 1)), classes, np.arange(6 * people))
        figure = Scores(Trial(tuple("abcdef"), test, test, test)).of(Outcome(p[None], ()), ())["calibration_error"]
        held += figure["interval_95"][0] == 0.0
        values.append((figure["value"], figure["by_chance"]))
    assert held >= 37
    value, chance = np.mean(values, axis=0)
    assert value > 0.05 and chance == pytest.approx(value, rel=0.25)


def test_leaving_a_site_out_leaves_out_whoever_has_tiles_there_and_what_was_drawn_from_them(
    ideal: tuple[Trial, dict[str, Outcome]],
) -> None:
    """Tiles drawn from site b's patients are nonsense: where they are left out, b is judged well."""
    made, found = ideal
    at_b = REAL.groups % 8 < 4
    of_real, of_test = np.where(at_b, "b", "a"), np.full(len(TEST), "b")
    people = [str(name) for name in (REAL.groups[at_b][0], REAL.groups[~at_b][0])]
    odd = np.arange(len(IDEAL)) % 2
    bad = Tiles(IDEAL.embeddings, np.where(odd, IDEAL.classes, (IDEAL.classes + 1) % 4), IDEAL.groups)
    sources = tuple(frozenset({people[number]}) for number in odd)
    known = leave_site_out(Trial(NAMES, REAL, bad, TEST, made.augmented, sources), found, of_real, of_test)
    unknown = leave_site_out(Trial(NAMES, REAL, bad, TEST, made.augmented), found, of_real, of_test)
    assert known["drawn_left"] == [len(IDEAL) // 2] and unknown["drawn_left"] == [len(IDEAL)]
    assert known["arms"][SYNTHETIC]["value"] > unknown["arms"][SYNTHETIC]["value"] + 0.05
    assert "are left out" in known["note"] and "may rest" in unknown["note"]
    every = (frozenset({people[0]}),) * len(IDEAL)
    none_left = leave_site_out(Trial(NAMES, REAL, bad, TEST, made.augmented, every), found, of_real, of_test)
    assert none_left["why"] == "for 1 of 1 sites no drawn tile is left that does not rest on it"
    assert leave_site_out(made, found, np.full(len(REAL), "a"), of_test)["why"]


def test_a_site_of_which_everybody_has_a_tile_is_not_judged(ideal: tuple[Trial, dict[str, Outcome]]) -> None:
    """Cohort and test have tiles of sites a and b; where all of --real were at both, nobody is left to learn from."""
    made, found = ideal
    of_test = np.where(np.arange(len(TEST)) % 2, "a", "b")
    both = np.where(np.arange(len(REAL)) % 2, "a", "b")
    assert "nobody is left to learn from" in leave_site_out(made, found, both, of_test)["why"]
    sides = evaluating.Sides(IDEAL, REAL, TEST, None, (both, of_test), (frozenset(),) * len(IDEAL))
    worth_of_it = worth._probed(sides, lambda what, total: lambda count: None, 1)
    assert "nobody is left" in worth_of_it["leave_site_out"]["why"]
    assert worth_of_it["arms"]["real only"]["balanced_accuracy"]["value"] > 0.5, "the other figures stand"
    some = np.where(np.arange(len(REAL)) % 4 == 0, "b", np.where(REAL.groups % 8 < 4, "a", "c"))
    judged = leave_site_out(made, found, some, of_test)
    assert (judged["sites"], judged["sites_not_judged"]) == (1, 1)


def test_tiles_of_no_known_site_are_no_site_and_teach_nothing(ideal: tuple[Trial, dict[str, Outcome]]) -> None:
    made, found = ideal
    people = np.unique(REAL.groups)
    of_real = np.where(np.isin(REAL.groups, people[::2]), "a", "b")
    of_test = np.where(np.arange(len(TEST)) % 2, "a", "b")
    hidden = np.arange(len(REAL)) % 5 == 0
    nonsense = REAL.embeddings.copy()
    nonsense[hidden] = 50.0
    known, swapped = (
        leave_site_out(
            Trial(NAMES, Tiles(rows, REAL.classes, REAL.groups), IDEAL, TEST, made.augmented, made.sources),
            found,
            np.where(hidden, "", of_real),
            np.where(np.arange(len(TEST)) < 10, "", of_test),
        )
        for rows in (REAL.embeddings, nonsense)
    )
    assert known == swapped and known["sites"] == 2
    assert known["tiles_without_site"] == {"real": int(hidden.sum()), "test": 10}
    assert (
        leave_site_out(made, found, np.where(of_real == "a", "a", ""), of_test)["why"]
        == "needs real tiles of two sites"
    )


def test_validation_meets_no_tile_drawn_from_whom_it_judges_by() -> None:
    """Copies of real tiles: validation that met them would choose the weakest regularisation, as if every patient were known."""
    copies = REAL.of(np.random.default_rng(0).permutation(len(REAL)))
    known = tuple(frozenset({str(name)}) for name in copies.groups)
    made = Trial(NAMES, REAL, copies, TEST, None, known)
    rows = np.flatnonzero(REAL.groups % 3 != 0)
    held = set(REAL.groups[REAL.groups % 3 == 0].tolist())
    left = made.drawn_beside(rows)
    assert 0 < len(left) < len(copies)
    assert not held & set(copies.groups[left].tolist())
    assert len(made.drawn_beside(np.arange(len(REAL)))) == len(copies)
    honest = run_trial(made, 1)[BOTH].chosen[0]
    leaking = run_trial(Trial(NAMES, REAL, copies, TEST, None, (frozenset(),) * len(copies)), 1)[BOTH].chosen[0]
    assert leaking.loss < 0.5 * honest.loss
    unknown = run_trial(Trial(NAMES, REAL, copies, TEST, None), 1)
    assert unknown[BOTH].chosen[0].strength == unknown["class weights"].chosen[0].strength
    assert np.isnan(unknown[BOTH].chosen[0].loss)


def test_drawn_tiles_of_patients_that_were_cut_away_do_not_teach_for_their_site(
    ideal: tuple[Trial, dict[str, Outcome]],
) -> None:
    """Of a large cohort some tiles are taken; whose tiles were not may still stand behind drawn ones."""
    made, found = ideal
    at_b = REAL.groups % 8 < 4
    of_test, gone = np.full(len(TEST), "b"), np.array(["gone-a", "gone-b"])
    sources = tuple(frozenset({str(gone[number % 2])}) for number in range(len(IDEAL)))
    trial = Trial(NAMES, REAL, IDEAL, TEST, made.augmented, sources)
    of_real = np.where(at_b, "b", "a")
    everyone = np.concatenate([REAL.groups.astype(str), gone]), np.concatenate([of_real, ["a", "b"]])
    assert leave_site_out(trial, found, of_real, of_test, everyone)["drawn_left"] == [(len(IDEAL) + 1) // 2]
    stranger = np.concatenate([REAL.groups.astype(str), gone[:1]]), np.concatenate([of_real, ["a"]])
    assert leave_site_out(trial, found, of_real, of_test, stranger)["drawn_left"] == [(len(IDEAL) + 1) // 2]


def test_classes_of_few_test_patients_count_in_no_mean() -> None:
    test = Tiles(np.zeros((44, 1)), np.repeat([0, 1, 2], [20, 20, 4]), np.arange(44))
    made = Trial(("a", "b", "c"), test, test, test)
    scores, hits = Scores(made), np.repeat([1.0, 1.0, 0.0], [20, 20, 4])
    assert scores.left_out == ("c",)
    assert scores.share(hits, range(3))["value"] == 1.0
    assert scores.share(hits, range(3))["interval_95"][0] < 0.95, "forty of forty are not all of all"
    assert scores.share(hits, [2])["why"] == "no class has 5 patients in the test"
    perfect = Outcome(np.eye(3)[test.classes][None], ())
    few = Tiles(np.zeros((9, 1)), np.repeat([0, 1, 2], 3), np.arange(9))
    nobody = Scores(Trial(("a", "b", "c"), few, few, few))
    right = Outcome(np.eye(3)[few.classes][None], ())
    told = nobody.of(right, [0])
    assert told["balanced_accuracy"]["value"] is None and told["by_seed"] == []
    assert nobody.gain(right, right, range(3))["value"] is None
    assert nobody.best_free({"real only": right}, range(3)) is None, "nothing was measured"
    assert scores.of(perfect, [2])["recall"]["c"]["why"] == "4 patients in the test; 5 are needed"
    low, high = scores.gain(perfect, perfect, range(3))["interval_95"]
    assert low < 0 < high


def test_the_rarest_are_those_of_the_whole_cohort_and_none_by_the_alphabet() -> None:
    sides = [np.repeat(np.arange(4), 5)] * 3
    made = Trial(tuple("abcd"), *(Tiles(np.zeros((20, 1)), classes, np.arange(20)) for classes in sides))
    assert rarest(made) == (), "all are of one size"
    assert rarest(made, sizes=np.array([3000, 50, 800, 100])) == (1, 3)
    assert rarest(made, sizes=np.array([10, 50, 50, 100])) == (0,), "of two of one size neither is the second rarest"


def test_the_best_free_arm_is_the_best_on_the_test(ideal: tuple[Trial, dict[str, Outcome]]) -> None:
    made, found = ideal
    perfect = np.eye(4)[made.test.classes][None]
    better = {**found, "SMOTE": Outcome(perfect, found["SMOTE"].chosen[:1])}
    assert Scores(made).best_free(better, range(4)) == "SMOTE"
    assert utility.hits_of(better["SMOTE"], made.test.classes).all()
