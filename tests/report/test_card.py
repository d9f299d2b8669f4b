"""The card: what it must say, what it must never say, and that nothing in a name or a licence can break it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from card_making import CPU, GPU, ROUNDS, SAMPLER, lock, make_out
from hypothesis import given, settings
from hypothesis import strategies as st

from synthfactory.report.card import cell, croissant_json, dataset_card
from synthfactory.report.facts import PRIVACY, gather, size_category
from synthfactory.shards.commit import Commit

HOSTILE = [
    "A | 999 | B", "a `code` *bold* _x_", "<script>alert(1)</script>", "[x](http://bad.example)", "![](x)", "&copy;", "{{ 7*7 }}",
    "{% raw %}", "---", "# head", "x\n---\nlicense: mit", "\x1b[31m", "a\\", "trailing \\|", "$x$", "~~x~~", "@everyone", "null", "yes",
]  # fmt: skip


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Commit]:
    return make_out(tmp_path_factory.mktemp("card") / "out", lock())


def card(commits: dict[int, Commit], locked: dict[str, Any] | None = None) -> str:
    return dataset_card(locked or lock(), ROUNDS, commits).decode()


def front(text: str) -> dict[str, Any]:
    head, matter, _ = text.split("---\n", 2)
    assert head == ""
    return dict(yaml.safe_load(matter))


def table(text: str, first: str) -> list[list[str]]:
    """Rows below the header that begins with `first`, as cells; the way Markdown splits them."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]])
    assert {len(row) for row in found} == {len(found[0])}
    return [found[0], *found[2:]]


def test_front_matter_is_what_the_hub_reads(commits: dict[int, Commit]) -> None:
    matter = front(card(commits))
    assert (matter["license"], matter["license_name"]) == ("other", "apache-2.0-and-terms-of-the-source")
    assert matter["pretty_name"] == "t"
    assert matter["task_categories"] == ["image-classification"]
    assert {"synthetic", "histopathology", "webdataset"} <= set(matter["tags"])
    assert matter["size_categories"] == ["n<1K"]
    assert matter["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "shards/*.tar"}]}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("CC BY-NC-ND 4.0", "cc-by-nc-nd-4.0"),
        ("My Terms: v1, 100%", "my-terms-v1-100"),
        ("x\nlicense: mit", "x-license-mit"),
        ("", "not-stated"),
        ("条款", "unknown"),
    ],
)
def test_licence_in_the_front_matter(commits: dict[int, Commit], name: str, expected: str) -> None:
    matter = front(card(commits, lock(licence={"name": name, "sharing": "local"})))
    assert {key: value for key, value in matter.items() if key.startswith("license")} == {
        "license": "other",
        "license_name": f"{expected}-and-terms-of-the-source",
    }


@pytest.mark.parametrize(
    ("tiles", "category"),
    [
        (0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "1M<n<10M"), (10**9, "1B<n<10B"),
        (10**12 - 1, "100B<n<1T"), (10**12, "n>1T"), (10**13, "n>1T"),
    ],
)  # fmt: skip
def test_size_categories(tiles: int, category: str) -> None:
    assert size_category(tiles) == category


def test_equal_input_gives_equal_bytes_and_is_left_alone(commits: dict[int, Commit]) -> None:
    locked, rounds, given_commits = lock(), copy.deepcopy(ROUNDS), copy.deepcopy(commits)
    turned = dict(reversed(list(commits.items())))
    turned_lock = json.loads(json.dumps(dict(reversed(list(locked.items())))))
    for write in (dataset_card, croissant_json):
        once = write(locked, rounds, given_commits)
        assert once == write(turned_lock, rounds, turned) == write(lock(), ROUNDS, commits)
        assert once.endswith(b"}\n" if write is croissant_json else b"|\n")
    assert (locked, rounds, given_commits) == (lock(), ROUNDS, commits)


def test_bytes_do_not_hang_on_hash_seed_or_place(commits: dict[int, Commit], tmp_path: Path) -> None:
    program = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; import card_making as m\n"
        "out = Path(sys.argv[2]); m.make_out(out, m.lock())\n"
        "print([hashlib.sha256((out / name).read_bytes()).hexdigest() for name in ('README.md', 'croissant.json')])\n"
    )
    place = tmp_path / "elsewhere" / "out"
    place.parent.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "1", "TZ": "UTC+9"}
    arguments = [sys.executable, "-c", program, str(Path(__file__).parent), str(place)]
    said = subprocess.run(arguments, check=True, env=environment, capture_output=True, text=True).stdout
    here = dataset_card(lock(), ROUNDS, commits), croissant_json(lock(), ROUNDS, commits)
    assert said.strip() == str([hashlib.sha256(data).hexdigest() for data in here])


def test_counts_asked_made_and_shortfall_by_class(commits: dict[int, Commit]) -> None:
    text = card(commits)
    assert table(text, "index") == [
        ["index", "class", "asked", "made", "shortfall"],
        ["0", "A", "6", "5", "1"],
        ["1", "B", "2", "2", "0"],
        ["", "all", "8", "7", "1"],
    ]
    assert "| Tiles | 7 of 8 asked for |" in text
    assert "| Shards | 3 of 3, WebDataset" in text
    assert "Shortfall: tiles for which no attempt" in text
    assert "Not complete" not in text


def test_a_set_that_is_not_complete_says_so(commits: dict[int, Commit]) -> None:
    text = card({0: commits[0]})
    assert table(text, "index")[-1] == ["", "all", "8", "3", "0"]
    assert "**Not complete:** 5 tiles are still to be drawn" in text
    assert "Shortfall:" not in text
    none = card({})
    assert "**Not complete:** 8 tiles" in none
    assert "Nothing is committed yet." in none
    assert front(none)["size_categories"] == ["n<1K"]
    assert gather(lock(), [], {}).pending == 0
    assert "Not complete" not in dataset_card(lock(), [], {}).decode()


def test_what_was_made_and_how_is_said(commits: dict[int, Commit]) -> None:
    text = card(commits)
    for line in (
        "| Tile | 16 x 16 px at 0.5 um/px, 8-bit RGB |",
        "| Format | png (lossless) |",
        "| Model | phantom, revision 1 |",
        f"| Model sha256 | {'a' * 64} |",
        "label = label of the conditioning tile, level: tile",
        "never a diagnosis".capitalize(),
        "synthfactory verify",
    ):
        assert line in text
    assert table(text, "for")[1:] == [
        ["all other classes", "ode", "heun", "10", "1.5", "0.0 to 1.0"],
        ["B", "sde", r"euler\_maruyama", "250", "2.5", "0.0 to 0.75"],
    ]
    assert [(row[0], row[2]) for row in table(text, "screen")[1:]] == [
        ("agreement", "max 0.999, min 0.3"),
        ("tissue", "min fraction 0.1"),
    ]
    assert "(lossy)" in card(commits, lock("jpeg"))
    without = lock()
    without["recipe"]["screen"] = {"tissue": None, "blur": None, "agreement": None}
    without["label_levels"] = ["slide", "tile"]
    assert "Screens: none; every tile that was drawn was kept." in card(commits, without)
    assert "level: slide or tile" in card(commits, without)


def test_seed_kind_decides_who_can_repeat_it(commits: dict[int, Commit]) -> None:
    secret = lock()
    secret["recipe"]["seed_kind"] = "secret"
    assert "an integer in the spec, so anyone" in card(commits)
    assert "a secret key, so only who holds the set's lineage" in card(commits, secret)


def test_each_kind_of_execution_stands_once(commits: dict[int, Commit]) -> None:
    rows = table(card(commits), "shards")
    assert rows[0] == ["shards", "tiles", "device", "dtype", r"batch\_size", "threads", "attention", "torch"]
    columns = ("device", "dtype", "batch_size", "threads", "attention", "torch")
    assert rows[1:] == [
        ["2", "5", *(str(CPU[name]) for name in columns)],
        ["1", "2", *(str(GPU[name]) for name in columns)],
    ]


def test_privacy_is_stated_exactly_and_never_promised(commits: dict[int, Commit]) -> None:
    for locked in (lock(), lock(licence={}), lock("webp")):
        both = (card(commits, locked), croissant_json(locked, ROUNDS, commits).decode())
        for text in both:
            assert PRIVACY in text
            assert "none" in text
            assert not re.search(
                r"\bprivate\b|anonym|de-?identif|without risk|risk-free|gdpr|hipaa", text, re.IGNORECASE
            )
    assert PRIVACY == (
        "each tile was conditioned on one real tile's embedding; no privacy guarantee is given; "
        "treat as personal data where the bank came from patients"
    )


def test_nothing_of_the_bank_or_the_machine_is_in_it(commits: dict[int, Commit]) -> None:
    for text in (card(commits), croissant_json(lock(), ROUNDS, commits).decode()):
        assert "c" * 64 not in text  # the bank's fingerprint
        assert "d" * 64 not in text
        for word in ("/tmp", "/home", os.uname().nodename, "patient_id", "slide_id", "seed"):
            assert word not in text


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ({"name": "Apache-2.0", "sharing": "allowed"}, True),
        ({"name": "CC BY-NC-ND 4.0", "sharing": "local"}, False),
        ({"name": "X", "sharing": True}, False),
        ({"name": "X"}, False),
        ({}, False),
    ],
)
def test_sharing_is_allowed_only_where_recorded(commits: dict[int, Commit], licence: Any, allowed: bool) -> None:
    text = card(commits, lock(licence=licence))
    assert ("| sharing | sharing allowed |" in text) is allowed
    assert ("| sharing | local use |" in text) is not allowed
    assert ("keep this set where it was made" in text) is not allowed
    assert ("Local use" in croissant_json(lock(licence=licence), ROUNDS, commits).decode()) is not allowed


def test_other_terms_are_listed(commits: dict[int, Commit]) -> None:
    text = card(commits, lock(licence={"name": "X", "note": "no\n| re-identification |", "links": ["a", {"b": 1}]}))
    assert r"| note | no \| re-identification \| |" in text
    assert r'| links | \["a", \{"b"\: 1\}\] |' in text


@pytest.mark.parametrize("name", HOSTILE)
def test_names_cannot_break_the_card(name: str) -> None:
    locked = lock(id=name, revision=name, licence={"name": name, "text": name, name: "x"})
    locked["name"] = name
    locked["classes"][1]["name"] = name
    locked["label_levels"] = [name]
    locked["recipe"]["class_samplers"] = {name: SAMPLER}
    rounds = [{**ROUNDS[0], "ranges": {"A": [0, 4], name: [0, 2]}}, ROUNDS[1]]
    body = {"tiles": 2, "classes": {name: 2}, "shortfall": {}, "fingerprint": {"device": name, name: name}}
    named = {"name": "shards/000000-abc.tar", "sha256": "0" * 64, "bytes": 1}
    commits = {0: Commit(0, {**body, "tar": named, "parquet": named})}
    text = dataset_card(locked, rounds, commits).decode()
    plain = dataset_card(lock(), ROUNDS, {0: Commit(0, {**commits[0].body, "classes": {"B": 2}})}).decode()
    matter = front(text)
    assert matter.keys() - {"license_name"} == front(plain).keys() - {"license_name"}
    assert (matter["pretty_name"], matter["license"]) == (name, "other")
    assert [len(row) for row in table(text, "index")] == [5] * 4
    assert [len(row) for row in table(text, "for")] == [6] * 3
    assert table(text, "index")[2][2:] == ["2", "2", "0"]
    assert "<" not in text.split("---\n", 2)[2]
    assert [line for line in text.splitlines() if line.startswith("#")][1:] == [
        line for line in plain.splitlines() if line.startswith("#")
    ][1:]
    assert "\x1b" not in text
    prose = re.sub(r"```.*?```", "", text.split("---\n", 2)[2], flags=re.DOTALL)
    assert not re.search(r"(?<!\\)\[|https?://", prose)
    assert json.loads(croissant_json(locked, rounds, commits))["name"] == name


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_cells_are_one_inert_line(text: str) -> None:
    made = cell(text)
    assert made.isprintable()
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*_\[\]~$@]", re.sub(r"\\[\\`*_{}\[\]#!|~$@:]", "", made))
    assert "<" not in made
    assert ">" not in made


def test_other_values_in_cells() -> None:
    assert [cell(value) for value in (None, True, 0.5, 3, ["a"])] == ["null", "true", "0.5", "3", r'\["a"\]']


PROGRAM = r"""
import contextlib, io, json, os, re, sys
sys.modules["torch"] = None  # webdataset takes it where it is there, and reads without; seconds to import
import webdataset
del sys.modules["torch"]
import datasets
said = {}
for place in sys.argv[1:]:
    os.chdir(place)
    blocks = re.findall(r"```python\n(.*?)```", open("README.md").read(), re.DOTALL)
    said[place] = []
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(block, {})
        said[place].append(out.getvalue().splitlines())
    said[place].append(sorted(row["json"]["label"] for row in datasets.load_dataset(place, split="train")))
json.dump(said, sys.stdout)
"""


def test_the_cards_own_instructions_work(tmp_path: Path) -> None:
    places = []
    for image_format in ("png", "webp", "jpeg"):
        (tmp_path / image_format).mkdir()
        make_out(tmp_path / image_format / "out", lock(image_format))
        places.append(str(tmp_path / image_format / "out"))
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "USE_TORCH": "0",
    }
    command = [sys.executable, "-c", PROGRAM, *places]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for place, (plain, streamed, loaded, hub) in json.loads(done.stdout).items():
        assert [line.split()[:2] for line in plain] == [
            ["t-a-00000000", "A"], ["t-a-00000001", "A"], ["t-b-00000000", "B"], ["t-a-00000002", "A"], ["t-b-00000001", "B"],
            ["t-a-00000004", "A"], ["t-a-00000005", "A"],
        ], place  # fmt: skip
        assert streamed == [f"{label} (16, 16)" for label in "AABABAA"]
        assert loaded == ["A (16, 16)"]
        assert hub == ["A"] * 5 + ["B"] * 2


def test_room_works_without_torch_and_ray() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'ray', 'webdataset', 'diffusers'): sys.modules[name] = None\n"
        "import importlib, pkgutil, synthfactory.report as room\n"
        "for found in pkgutil.iter_modules(room.__path__): importlib.import_module(f'synthfactory.report.{found.name}')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
