"""Recipe and lock: what belongs together, what differs by name, and a published file without anything of patients or machines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import MODEL, spec_of

from synthfactory.plan.lock import build_lock, check_same_execution, check_same_recipe, grown, lock_yaml, read_lock
from synthfactory.plan.recipe import ModelFacts, recipe, recipe_difference, recipe_hash, version_of
from synthfactory.shards.seal import sealed
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec

CLASSES = {"A": 10, "B": "{count: 5, sampler: {steps: 20}}"}
MACS = {"A": "m1", "B": "m2", "C": "m3"}


def recipe_of(spec: Spec, model: ModelFacts = MODEL, macs: dict[str, str] = MACS) -> dict[str, Any]:
    return recipe(spec, model, {name: macs[name] for name in spec.classes})


def lock_of(spec: Spec) -> dict[str, Any]:
    return build_lock(spec, MODEL, recipe_of(spec), list(spec.classes), ["tile"], MODEL.encoder, "none")


def differences(spec: Spec, model: ModelFacts = MODEL, macs: dict[str, str] = MACS) -> list[str]:
    lock = read_lock(lock_yaml(lock_of(spec_of(CLASSES))))
    return recipe_difference(lock["recipe"], recipe_of(spec, model, macs), {"A", "B"})


@pytest.mark.parametrize(
    "spec",
    [
        spec_of({**CLASSES, "A": 99}),
        spec_of({"B": CLASSES["B"]}),
        spec_of({"C": 3, **CLASSES}),
        spec_of({**CLASSES, "A": "{count: 10, sampler: {}}"}),
        spec_of({**CLASSES, "A": "{count: 10, sampler: {solver: heun}}"}),
        spec_of(CLASSES, "output: {path: s3://elsewhere/x, shard_size: 3}", "lineage: s3://other"),
        spec_of(CLASSES, "budget: {max_attempts: 9, network_calls: 5}", "execution: {strict: true, batch_size: 2}"),
        spec_of({**CLASSES, "A": "{count: 10, budget: {max_attempts: 9}}"}),
        spec_of(CLASSES, "model: /another/path/to/the/same", "embeddings: {bank: s3://moved/bank.parquet}"),
        spec_of(CLASSES, "sampler: {method: ode, solver: heun, steps: 25, guidance: {scale: 1.5}}"),
    ],
    ids=[
        "size",
        "fewer",
        "joined",
        "empty override",
        "override to the same",
        "places",
        "means",
        "means of a class",
        "moved",
        "defaults",
    ],
)
def test_size_place_and_means_do_not_make_another_recipe(spec: Spec) -> None:
    assert differences(spec) == []
    assert recipe_hash(recipe_of(spec)) == recipe_hash(recipe_of(spec_of(CLASSES)))


def test_a_set_goes_on_with_the_choice_of_conditions_that_it_was_begun_with() -> None:
    for version, goes_on, of_blends in ((1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 3, 4), (5, 3, 4)):
        spec = spec_of(CLASSES)
        begun = recipe(spec, MODEL, dict.fromkeys(spec.classes, "mac"), conditions_version=version)
        lock = build_lock(spec, MODEL, begun, list(spec.classes), ["tile"], MODEL.encoder, "none")
        assert (version_of(lock, "none"), version_of(lock, "mix")) == (goes_on, of_blends)
    assert (version_of(None, "none"), version_of(None, "dp"), version_of(None, "mix")) == (3, 3, 4)
    with pytest.raises(InputError, match="conditions_version: was 5, now 3"):
        check_same_recipe(lock, recipe(spec, MODEL, dict.fromkeys(spec.classes, "mac")), "out")


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (spec_of(CLASSES, "name: other"), 'name: was "demo", now "other"'),
        (spec_of(CLASSES, "sampler: {guidance: {high: 0.75}}"), "sampler.guidance.high: was 1.0, now 0.75"),
        (spec_of(CLASSES, "output: {path: out, format: webp}"), 'format: was "png", now "webp"'),
        (spec_of(CLASSES, "seed: secret"), 'seed_kind: was "integer", now "secret"'),
    ],
    ids=["name", "guidance", "format", "seed"],
)
def test_what_differs_is_named_with_both_values(spec: Spec, line: str) -> None:
    assert line in differences(spec)
    assert recipe_hash(recipe_of(spec)) != recipe_hash(recipe_of(spec_of(CLASSES)))


def test_a_screen_that_is_switched_on_is_named() -> None:
    found = differences(spec_of(CLASSES, "screen: {tissue: {min_fraction: 0.2}}"))
    assert "screen.tissue.min_fraction: was not set, now 0.2" in found


def test_another_model_or_bank_or_class_sampler_is_named() -> None:
    spec = spec_of(CLASSES)
    assert differences(spec, replace(MODEL, sha256="c" * 64)) == [f'model.sha256: was "{"a" * 64}", now "{"c" * 64}"']
    (line,) = differences(spec, macs={**MACS, "B": "m9"})
    assert line.startswith("classes.B: its rows in the bank (embeddings, patients")
    assert "m2" not in line and "m9" not in line
    (line,) = differences(spec_of({**CLASSES, "B": "{count: 5, sampler: {steps: 30}}"}))
    assert line.startswith("classes.B.sampler: was ")
    assert '"steps": 20' in line
    assert '"steps": 30' in line
    (line,) = differences(spec_of({**CLASSES, "B": 5}))
    assert line.endswith("now not set")


def test_another_recipe_is_refused_with_every_difference_listed() -> None:
    lock = lock_of(spec_of(CLASSES))
    check_same_recipe(lock, recipe_of(spec_of({"A": 10})), "out")
    with pytest.raises(InputError) as caught:
        check_same_recipe(lock, recipe_of(spec_of(CLASSES, "name: other", "sampler: {steps: 7}")), "out")
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(
        "out: was built with another recipe; one output holds one recipe, so choose a new output.path"
    )
    assert [line.split(":")[0] for line in rest] == ["  name", "  sampler.steps"]


def test_growth_keeps_the_index_of_every_class() -> None:
    lock = lock_of(spec_of(CLASSES))
    more = grown(lock, ["C", "A"], recipe_of(spec_of({"C": 3, "A": 10})), ["region"], "unknown")
    assert more["training_cohort"] == "unknown"
    assert more["label_levels"] == sorted({*lock["label_levels"], "region"})
    assert [(entry["name"], entry["class_index"]) for entry in more["classes"]] == [("A", 0), ("B", 1), ("C", 2)]
    assert more["recipe"]["class_banks"] == {"A": "m1", "B": "m2", "C": "m3"}
    assert more["recipe"]["class_samplers"] == lock["recipe"]["class_samplers"]
    assert more["recipe_sha256"] == lock["recipe_sha256"]
    assert {key: more[key] for key in lock if key not in ("classes", "recipe", "label_levels", "training_cohort")} == {
        key: lock[key] for key in lock if key not in ("classes", "recipe", "label_levels", "training_cohort")
    }
    assert grown(more, ["A", "B", "C"], recipe_of(spec_of({**CLASSES, "C": 3})), [], "none") == more
    assert [entry["name"] for entry in lock["classes"]] == ["A", "B"], "the lock that was given is left alone"
    assert read_lock(lock_yaml(more)) == more


def test_a_class_that_left_and_comes_back_must_be_what_it_was() -> None:
    lock = lock_of(spec_of(CLASSES))
    check_same_recipe(lock, recipe_of(spec_of({"A": 10})), "out")
    with pytest.raises(InputError, match=r"classes\.B\.sampler: was"):
        check_same_recipe(lock, recipe_of(spec_of({"A": 10, "B": 5})), "out")


def test_the_lock_fixes_execution_at_the_first_build() -> None:
    lock = lock_of(spec_of(CLASSES))
    assert lock["execution"] == {"batch_size": 16, "dtype": "float32", "threads": 1, "compile": None, "strict": False}
    for words in ("{}", "{batch_size: 16}", "{threads: 1, strict: false}"):
        check_same_execution(lock, spec_of(CLASSES, f"execution: {words}"))
    for words, message in (
        ("{batch_size: 8}", "execution.batch_size: 8 differs from 16"),
        ("{dtype: bfloat16}", "execution.dtype: bfloat16 differs from float32"),
        ("{threads: 4}", "execution.threads: 4 differs from 1"),
        ("{strict: true}", "execution.strict: True differs from False"),
    ):
        with pytest.raises(InputError) as caught:
            check_same_execution(lock, spec_of(CLASSES, f"execution: {words}"))
        assert str(caught.value).startswith("s.yaml:10:")
        assert message in str(caught.value)
        assert "leave it out or change it back" in str(caught.value)


def test_the_lock_tells_nothing_that_must_not_be_published() -> None:
    spec = spec_of(
        CLASSES,
        "seed: 987654321",
        "output: {path: /secret/place}",
        "lineage: /secret/lineage",
        "embeddings: {bank: /secret/b}",
    )
    text = lock_yaml(lock_of(spec)).decode()
    assert "987654321" not in text
    assert "secret/" not in text
    assert lock_yaml(lock_of(spec)) == lock_yaml(lock_of(spec))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "x" * 501}, "model.id: String should have at most 500 characters"),
        ({"revision": "\x1b[31m"}, "model.revision: holds characters that cannot be printed"),
        ({"resolution_mpp": float("inf")}, "model.resolution_mpp: "),
        ({"licence": {"k": float("nan")}}, "Out of range float values are not JSON compliant"),
    ],
)
def test_a_lock_that_no_later_build_could_read_is_never_made(change: dict[str, Any], message: str) -> None:
    spec, model = spec_of(CLASSES), replace(MODEL, **change)
    with pytest.raises(InputError, match="could never be read back") as caught:
        build_lock(spec, model, recipe_of(spec, model), list(spec.classes), ["tile"], model.encoder, "none")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


LABELS = ["yes", "null", "1", "2020-01-01", "a: b", "#7", "腺 2", "A" * 60, "'q'", "~3", "1e5"]


@settings(deadline=None)
@given(st.sets(st.sampled_from(LABELS), min_size=1), st.floats(1, 100), st.floats(0, 1))
def test_the_lock_survives_its_file(labels: set[str], scale: float, low: float) -> None:
    classes = dict.fromkeys(sorted(labels), 3)
    spec = spec_of(classes, f"sampler: {{guidance: {{scale: {scale!r}, low: {low!r}}}}}")
    lock = build_lock(
        spec,
        MODEL,
        recipe(spec, MODEL, dict.fromkeys(classes, "m")),
        list(classes),
        ["tile", "slide"],
        MODEL.encoder,
        "some",
    )
    assert read_lock(lock_yaml(lock)) == lock


def test_damaged_locks_are_named_whatever_was_done_to_them() -> None:
    whole = lock_yaml(lock_of(spec_of(CLASSES)))
    values = yaml.safe_load(whole)
    needed = [key for key in values if key not in ("encoder", "label_levels", "training_cohort", "seal")]
    changed: list[dict[str, Any]] = [
        *({name: value for name, value in values.items() if name != key} for key in needed),
        *({**values, key: []} for key in needed if key != "classes"),
        *({**values, "classes": wrong} for wrong in ("A", ["A"], [{"name": 1, "class_index": 0}], 5)),
        {**values, "format": "synthfactory/2"},
    ]
    damaged = [
        *(yaml.safe_dump(sealed(other)).encode() for other in changed),
        *(b"", b"x", b"- 1", b"\xff\xfe", b"{", b"a: !!python/name:os.system x", b"d: 2020-13-45", b"[" * 3000),
        *(whole[:200], b"a: &a [x]\nb: [*a, *a]\n", whole + b"more: [*a]\n"),
        whole.replace(b"steps: 25", b"steps: 26"),
        whole.replace(b"class_index: 1", b"class_index: 3"),
    ]
    assert sealed(read_lock(whole)) == values
    for data in damaged:
        with pytest.raises(
            InputError, match=r"^spec\.lock\.yaml: is damaged, was changed since it was written, or is not"
        ):
            read_lock(data)
