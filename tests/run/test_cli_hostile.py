"""Sets that come from anyone, damaged or made up: every command ends with a message, none with a traceback, and none follows them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_checks import check_refusal, snapshot
from running import contents, run

from synthfactory.plan.lock import lock_yaml
from synthfactory.plan.recipe import recipe_hash
from synthfactory.shards.seal import sealed

LOCK, ROUND = "spec.lock.yaml", "rounds/000000.json"
COMMANDS = [["status"], ["verify"], ["verify", "--quick"], ["gc", "--dry-run"], ["gc"], ["preview"]]


def _round(**changes: Any) -> bytes:
    values = {"round": 0, "ranges": {"alpha": [0, 5]}, "first_shard": 0, "num_shards": 1, **changes}
    values = {name: value for name, value in values.items() if value is not None}
    with contextlib.suppress(ValueError):  # NaN has none
        values = sealed(values)  # a seal is no signature: what is wrong must be seen for itself
    return json.dumps(values).encode()


GARBAGE = {
    "lock of bytes": (LOCK, bytes(range(256)) * 20),
    "lock of nothing": (LOCK, b""),
    "lock of a list": (LOCK, b"- 1\n"),
    "lock of another kind": (LOCK, b"lockfileVersion: '6.0'\nsettings: {autoInstallPeers: true}\n"),
    "lock of aliases": (LOCK, b"a: &a [x, x]\nb: &b [*a, *a]\nformat: *b\n"),
    "lock of a program": (LOCK, b"format: !!python/object/apply:os.system ['touch hacked']\n"),
    "lock nested deep": (LOCK, b"format: " + b"[" * 5000),
    "round of bytes": (ROUND, bytes(range(256))),
    "round of nothing": (ROUND, b""),
    "round of a list": (ROUND, b"[1, 2]"),
    "round of null": (ROUND, b"null"),
    "round nested deep": (ROUND, b"[" * 100_000),
    "round without shards": (ROUND, _round(num_shards=None)),
    "round of no shards": (ROUND, _round(num_shards=0)),
    "round of infinite shards": (ROUND, _round(num_shards=float("inf"))),
    "round of no number": (ROUND, _round(first_shard=float("nan"))),
    "round of endless digits": (ROUND, b'{"round": ' + b"9" * 5000 + b"}"),
    "round with ranges backwards": (ROUND, _round(ranges={"alpha": [5, 0]})),
    "round with ranges of words": (ROUND, _round(ranges={"alpha": "all"})),
    "round that starts elsewhere": (ROUND, _round(first_shard=7)),
    "round of another number": (ROUND, _round(round=3)),
    "round with a gap before it": (ROUND, _round(ranges={"alpha": [2, 7]})),
    "round that is not the next": ("rounds/000002.json", _round(round=2)),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_in_place_of_lock_or_round(place: Path, name: str) -> None:
    path, content = GARBAGE[name]
    (place / "out" / path).write_bytes(content)
    before = snapshot(place)
    for command in COMMANDS:
        ended = run(*command, place / "out")
        check_refusal(ended, f"Error: {place}/out/{path.partition('/')[0]}")
        assert len(ended.err) < 600
    for command in (["build", "spec.yaml", "--local"], ["plan", "spec.yaml"]):
        ended = run(*command)
        check_refusal(ended, f"output.path: {place}/out/{path.partition('/')[0]}")
        assert ended.err.startswith("Error: spec.yaml:")
    assert snapshot(place) == before


def _paths(values: Any, start: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*start, key)
        yield from _paths(value, (*start, key))


def _changed(lock: dict[str, Any], path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> bytes:
    """The lock with one entry changed, and its recipe hash made right again, as an attacker would."""
    whole: dict[str, Any] = yaml.safe_load(yaml.safe_dump(lock))
    inner: Any = whole
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    if path[0] != "recipe_sha256" and isinstance(whole.get("recipe"), dict):
        whole["recipe_sha256"] = recipe_hash(whole["recipe"])
    return lock_yaml(whole)


def _set(value: Any) -> Callable[[Any, Any], None]:
    def change(inner: Any, key: Any) -> None:
        inner[key] = value

    return change


CHANGES = {
    "left out": lambda inner, key: inner.pop(key),
    "null": _set(None),
    "a number": _set(-7),
    "text": _set("\x1b[31m../../x"),
    "a list": _set([[]]),
    "a mapping": _set({"a": {"b": []}}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_locks_of_the_right_form_with_one_thing_wrong(place: Path, name: str) -> None:
    file = place / "out" / LOCK
    lock = yaml.safe_load(file.read_bytes())
    for path in list(_paths(lock)):
        file.write_bytes(_changed(lock, path, CHANGES[name]))
        before = snapshot(place / "out")
        for command in (["status"], ["verify", "--quick"], ["gc", "--dry-run"], ["preview", "-o", "sheet.png"]):
            ended = run(*command, place / "out")
            assert ended.code in (0, 1, 2, 3), (path, command)
            assert "Traceback" not in ended.err
            assert "\x1b" not in ended.err + ended.out, (path, command)
        ended = run("plan", "spec.yaml")
        assert ended.code in (0, 2), (path, ended.err)
        assert snapshot(place / "out") == before, path


@pytest.mark.parametrize("path", [LOCK, ROUND, "commits/000000.json", "README.md"])
def test_a_pipe_in_place_of_a_file_keeps_nobody_waiting(place: Path, path: str) -> None:
    (place / "out" / path).unlink()
    os.mkfifo(place / "out" / path)
    for command in (["status"], ["verify"], ["gc", "--dry-run"]):
        ended = run(*command, place / "out")
        assert "Traceback" not in ended.err
        if path in (LOCK, ROUND):
            check_refusal(ended, f"{path}: is a pipe, socket or device, not a file")
    assert run("verify", place / "out").code == (2 if path in (LOCK, ROUND) else 1)
    assert run("build", "spec.yaml", "--local").code == 2


@pytest.mark.parametrize("path", [LOCK, ROUND, "commits/000000.json", "README.md"])
def test_a_link_in_place_of_a_file_is_a_fault_that_a_build_mends(place: Path, path: str) -> None:
    before = contents(place / "out")
    (place / "out" / path).rename(place / "elsewhere")
    (place / "out" / path).symlink_to(place / "elsewhere")
    ended = run("verify", place / "out")
    assert (ended.code, ended.err) == (1, "")
    assert f"{path}: is a link, not a file" in " ".join(ended.out.split())
    assert run("build", "spec.yaml", "--local").code == 0
    assert not (place / "out" / path).is_symlink()
    assert contents(place / "out") == before
    assert run("verify", place / "out").code == 0
    assert (place / f"lineage/foreign/{path}.link").read_text() == str(place / "elsewhere")
