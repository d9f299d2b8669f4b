"""JSON nested deeper than Python reads is damaged JSON, wherever it lies: one message, exit code 2, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import run

from synthfactory.shards.lease import has_ended
from synthfactory.spec.errors import InputError
from synthfactory.spec.json_text import read_json
from train.terms import notes_of

DEEP = "[" * 200_000


def test_it_is_a_value_error_like_all_that_is_no_json() -> None:
    for text in (DEEP, DEEP.encode(), "{", ""):
        with pytest.raises(ValueError):  # noqa: PT011 - json's own says something else for each
            read_json(text)
    assert read_json('{"a": [1]}') == {"a": [1]}


def test_in_what_comes_from_others_and_in_lineage(place: Path, tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text(DEEP)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed/pack.json").write_text(DEEP)
    for asked in (("init", "packed", "new.yaml"), ("ethics", "out", "--audit", "deep.json")):
        ended = run(*asked)
        assert (ended.code, "Traceback" in ended.err) == (2, False), ended.err
    assert not (tmp_path / "new.yaml").exists()
    (place / "lineage/set.json").write_text(DEEP)  # says nothing of whose it is, as where there is none
    assert run("plan", "spec.yaml").code == 0
    secret = (place / "spec.yaml").read_text().replace("seed: 5", "seed: secret")
    (place / "spec.yaml").write_text(secret)
    (place / "lineage/secret.json").write_text(DEEP)
    ended = run("plan", "spec.yaml")
    assert ended.code == 2
    assert "secret.json: is damaged" in ended.err


def test_in_runs_and_leases(tmp_path: Path) -> None:
    (tmp_path / "extra.json").write_text(DEEP)
    with pytest.raises(InputError, match=r"extra\.json: is missing or damaged"):
        notes_of(tmp_path)
    assert not has_ended(DEEP.encode())
