"""Right specs: what they come out as, where their fields stand, and the JSON Schema that editors use."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfactory.spec.errors import InputError
from synthfactory.spec.jsonschema import json_schema
from synthfactory.spec.load import load_spec, parse_spec
from synthfactory.spec.terms import Terms

SPECS = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))
SMALL = "name: a\nmodel: phantom\nclasses: {A: 3}\nembeddings: {bank: b}\noutput: {path: o}\nlineage: l\n"


def test_shipped_specs_load_and_come_out_as_written() -> None:
    found = {path.stem: load_spec(path) for path in SPECS}
    assert {"demo", "rare-class", "cluster-s3"} <= found.keys()
    demo = found["demo"]
    assert (demo.name, demo.seed, demo.output.shard_size) == ("demo", 20261123, 18)
    assert {name: item.count for name, item in demo.classes.items()} == dict.fromkeys(demo.classes, 12)
    assert (demo.sampler.solver, demo.sampler.steps, demo.sampler.guidance.scale) == ("heun", 10, 1.5)
    rare = found["rare-class"]
    assert (rare.total, rare.classes["phantom-necrosis"].fraction, rare.seed) == (240, 0.35, "secret")
    assert rare.sampler_for("phantom-necrosis").steps == 20
    assert rare.sampler_for("phantom-necrosis").guidance.scale == 2.0
    assert rare.sampler_for("phantom-gland") == rare.sampler
    assert found["cluster-s3"].sampler.guidance.high == 0.75
    assert found["cluster-s3"].classes["phantom-gland"].count == 200_000


def test_what_is_left_out_has_its_default() -> None:
    spec = parse_spec(SMALL, "s.yaml")
    assert spec.seed == "secret"
    assert (spec.sampler.method, spec.sampler.solver, spec.sampler.steps) == ("ode", "heun", 25)
    assert (spec.output.format, spec.output.shard_size, spec.budget.max_attempts) == ("png", 1000, 4)
    assert spec.screen.tissue is spec.screen.blur is spec.screen.agreement is None
    assert spec.budget.network_calls is None


@pytest.mark.parametrize(
    ("written", "method", "solver"),
    [
        ("{method: sde}", "sde", "euler_maruyama"),
        ("{method: ode}", "ode", "heun"),
        ("{solver: euler}", "ode", "euler"),
        ("{method: sde, solver: euler_maruyama}", "sde", "euler_maruyama"),
    ],
)
def test_a_method_brings_its_solver(written: str, method: str, solver: str) -> None:
    sampler = parse_spec(f"{SMALL}sampler: {written}\n", "s.yaml").sampler
    assert (sampler.method, sampler.solver) == (method, solver)


def test_a_class_overrides_what_it_names_and_inherits_the_rest() -> None:
    text = SMALL.replace("{A: 3}", "{A: 3, B: {count: 2, sampler: {method: sde, guidance: {high: 0.75}}}}")
    spec = parse_spec(f"{text}sampler: {{solver: euler, steps: 7, guidance: {{scale: 2}}}}\n", "s.yaml")
    merged = spec.sampler_for("B")
    assert (merged.method, merged.solver, merged.steps) == ("sde", "euler_maruyama", 7)
    assert (merged.guidance.scale, merged.guidance.low, merged.guidance.high) == (2.0, 0.0, 0.75)
    assert spec.sampler_for("A") == spec.sampler


@pytest.mark.parametrize(
    ("label", "name"),
    [("Yes", "Yes"), ("on", "on"), ("1:30", "1:30"), ("2020-01-01", "2020-01-01"), ("12", "12"), ("null", "null")],
)
def test_labels_stay_text_whatever_they_look_like(label: str, name: str) -> None:
    assert list(parse_spec(SMALL.replace("{A: 3}", f"\n  {label}: 3"), "s.yaml").classes) == [name]


def test_a_label_may_hold_spaces_capitals_dots_and_other_scripts() -> None:
    names = ["Lung Adenocarcinoma", "Grad 2 (mäßig)", "T.1", "腺 a"]
    text = SMALL.replace("{A: 3}", "{" + ", ".join(f'"{name}": 3' for name in names) + "}")
    spec = parse_spec(text, "s.yaml")
    assert list(spec.classes) == names
    assert spec.locate("classes.T.1").startswith("s.yaml:3:")


def test_thirds_need_not_be_written_out_for_ever() -> None:
    text = SMALL.replace("{A: 3}", "{" + ", ".join(f"{name}: {{fraction: 0.333333}}" for name in "ABC") + "}\ntotal: 9")
    assert parse_spec(text, "s.yaml").total == 9


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    text = "\ufeff" + SMALL.replace("\n", "\r\n") + "seed: -1\r\n"
    (tmp_path / "s.yaml").write_bytes(text.encode())
    with pytest.raises(InputError, match=r"s\.yaml:7:7: seed: "):
        load_spec(tmp_path / "s.yaml")


def test_late_checks_still_name_the_place() -> None:
    spec = parse_spec(SMALL, "s.yaml")
    assert str(spec.error("classes.A", "is bad")) == "s.yaml:3:14: classes.A: is bad"
    assert str(spec.error("sampler.steps", "is bad")) == "s.yaml:1:1: sampler.steps: is bad"
    assert str(spec.error("embeddings.bank", "is bad")).startswith("s.yaml:4:20: ")


def test_jpeg_is_allowed_with_a_warning() -> None:
    (warning,) = parse_spec(SMALL.replace("{path: o}", "{path: o, format: jpeg}"), "s.yaml").warnings
    assert "jpeg" in warning
    assert "lossless" in warning
    assert parse_spec(SMALL, "s.yaml").warnings == ()


def test_a_spec_cannot_be_changed_after_it_was_checked() -> None:
    spec = parse_spec(SMALL, "s.yaml")
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "b"  # type: ignore[misc]


def test_links_are_seen_through_where_asked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    text = SMALL.replace("path: o", f"path: {tmp_path}/out").replace("lineage: l", f"lineage: {tmp_path}/link/l")
    spec = parse_spec(text, "s.yaml")
    assert spec.nesting_problems() == []
    assert [path for path, _ in spec.nesting_problems(resolve=os.path.realpath)] == ["lineage"]


def refusal(text: str) -> str:
    """The message for a spec that is refused, '' for one that is accepted; any other error passes through."""
    try:
        parse_spec(text, "s.yaml")
    except InputError as error:
        return str(error)
    return ""


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_gives_a_clear_error(text: str) -> None:
    assert refusal(text).startswith("s.yaml:")


@settings(deadline=None)
@given(st.data())
def test_a_damaged_spec_gives_a_spec_or_a_clear_error(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(SMALL)))
    junk = data.draw(
        st.sampled_from([*"{}[]:,#&*!|>'\"%@`-?~\t\n\\", "<<: ", "\u2028", "\ud800", "9" * 30, ".nan", "- "])
    )
    text = SMALL[:place] + junk + SMALL[place + data.draw(st.integers(0, 3)) :]
    assert all(line.startswith(("s.yaml:", "and ")) for line in refusal(text).splitlines())


def _fields(schema: Any) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(schema, list):
        return list(itertools.chain.from_iterable(map(_fields, schema)))
    if not isinstance(schema, dict):
        return []
    own = list(schema["properties"].items()) if isinstance(schema.get("properties"), dict) else []
    return own + list(itertools.chain.from_iterable(map(_fields, schema.values())))


def test_schema_says_of_every_field_what_it_is_with_an_example() -> None:
    found = _fields(json_schema())
    assert len(found) > 40
    assert [name for name, field in found if not field.get("description") or not field.get("examples")] == []


def test_schema_is_valid_and_agrees_with_the_loader() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in SPECS:
        validator.validate(yaml.safe_load(path.read_text()))
    right = yaml.safe_load(SMALL)
    validator.validate(right)
    for key, wrong in {
        "name": "Demo", "seed": -1, "classes": {"A": 0}, "sampler": {"steps": 0}, "output": {"path": "o", "format": "gif"},
        "budget": {"max_attempts": 0}, "embedings": {}, "lineage": 7, "execution": {"strict": 1}, "total": "many",
    }.items():  # fmt: skip
        assert not validator.is_valid({**right, key: wrong}), key
        with pytest.raises(InputError):
            parse_spec(yaml.safe_dump({**right, key: wrong}), "s.yaml")
    for key in ("name", "model", "classes", "embeddings", "output", "lineage"):
        assert not validator.is_valid({other: right[other] for other in right if other != key}), key


def test_room_works_without_torch_and_ray() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'ray', 'diffusers', 'webdataset', 'pyarrow'): sys.modules[name] = None\n"
        "import importlib, pkgutil, synthfactory.spec as room\n"
        "for found in pkgutil.iter_modules(room.__path__): importlib.import_module(f'synthfactory.spec.{found.name}')\n"
        "from synthfactory.spec.load import load_spec\n"
        "assert load_spec(sys.argv[1]).name == 'demo'\n"
    )
    subprocess.run([sys.executable, "-c", program, str(SPECS[[p.stem for p in SPECS].index("demo")])], check=True)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such file; name a spec such as specs/demo\.yaml"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a folder; name a spec"):
        load_spec(tmp_path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs an endless file")
def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(InputError, match="is too large"):
        load_spec("/dev/zero")


def test_a_licence_that_nobody_states_allows_no_sharing() -> None:
    allowed, local = {"name": "MIT", "sharing": "allowed"}, {"name": "X", "sharing": "local"}
    settled = [
        Terms().settled(model, encoder)["sharing"]
        for model, encoder in (
            (allowed, {}),
            (allowed, allowed),
            ({}, {}),
            ({}, allowed),
            (allowed, local),
            (local, allowed),
        )
    ]
    assert settled == ["allowed", "allowed", "local", "local", "local", "local"]
