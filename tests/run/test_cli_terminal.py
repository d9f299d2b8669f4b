"""What is printed at a terminal about a set, a model or a file name of unknown origin never moves, colours or fakes anything there."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pty
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import PROGRAM

ESC = "\x1b]0;PWNED\x07\x1b[31mred"


def on_terminal(*arguments: object) -> tuple[int, str]:
    """(exit code, all that came out) of `synthfactory ARGUMENTS` with a terminal as stdout and stderr."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs
        )
    finally:
        os.close(theirs)
    found = b""
    with contextlib.suppress(OSError):  # Linux's way of saying that the other end is closed
        while data := os.read(ours, 1 << 16):
            found += data
    os.close(ours)
    return process.wait(60), found.decode()


def rewrite_records(out: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes every KEY.json of shard 0 under a commit whose checksums are right, as a hostile writer would."""
    (old,) = (out / "shards").glob("000000-*.tar")
    made = io.BytesIO()
    with tarfile.open(old) as source, tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as target:
        for member in source:
            handle = source.extractfile(member)
            assert handle is not None
            data = handle.read()
            if member.name.endswith(".json"):
                values = json.loads(data)
                change(values)
                data = json.dumps(values).encode()
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    old.unlink()
    digest = hashlib.sha256(made.getvalue()).hexdigest()
    name = f"shards/000000-{digest[:12]}.tar"
    (out / name).write_bytes(made.getvalue())
    commit = out / "commits/000000.json"
    body = json.loads(commit.read_bytes())
    body["tar"] = {"name": name, "sha256": digest, "bytes": len(made.getvalue())}
    commit.write_text(json.dumps(body, sort_keys=True, separators=(",", ":")) + "\n")


RECORDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "key": lambda record: record.update(key=ESC),
    "unknown field": lambda record: record.update({ESC: 1}),
    "lone surrogate as label": lambda record: record.update(label="\ud800"),
    "endless label": lambda record: record.update(label="L" * 200_000),
    "label of many lines": lambda record: record.update(label="x\nno fault found\n"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_hostile_records(place: Path, name: str) -> None:
    rewrite_records(place / "out", RECORDS[name])
    code, text = on_terminal("verify", place / "out")
    assert code == 1, text
    assert "Traceback" not in text
    assert "\x1b" not in text and "\x07" not in text
    assert len(text) < 2000
    assert not any(line.strip().startswith("no fault") for line in text.splitlines())
