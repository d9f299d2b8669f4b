"""Runs the command line as a user does: in this process (quick) or as a process of its own (to be killed)."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from synthfactory import cli
from synthfactory.shards.store import open_store


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Ended:
    """`synthfactory ARGUMENTS` in this process, without a terminal."""
    out, err = io.StringIO(), io.StringIO()
    before, argv = signal.getsignal(signal.SIGTERM), sys.argv
    sys.argv = ["synthfactory", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as stop:
        return Ended(int(stop.code or 0), out.getvalue(), err.getvalue())
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.argv = argv
    raise AssertionError("main() always exits")


# Whatever starts the tests may ignore SIGINT (a shell does for its background jobs), and children inherit that.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from synthfactory.cli import main; main()"
)


def start(*arguments: object, **extra_environment: str) -> subprocess.Popen[bytes]:
    """The same as a process in a group of its own, Ray on loopback; ended by `kill`."""
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **extra_environment}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and to every descendant of it (Ray's daemons leave its group, so they are found by parent)."""
    doomed, found = {process.pid}, True
    while found:
        found = False
        for pid, parent in _parents().items():
            if parent in doomed and pid not in doomed:
                doomed.add(pid)
                found = True
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int, name: str) -> list[int]:
    """Pids below `pid` whose command line holds `name`."""
    parents = _parents()
    found = []
    for candidate in parents:
        at = candidate
        while at in parents and at != pid:
            at = parents[at]
        if at == pid and candidate != pid:
            with contextlib.suppress(OSError):
                if name in Path(f"/proc/{candidate}/cmdline").read_bytes().decode(errors="replace"):
                    found.append(candidate)
    return found


def _parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def write_spec(path: Path, **changes: Any) -> Path:
    """A spec for the tiny model; `changes` replace top-level fields (None leaves one out)."""
    values: dict[str, Any] = {
        "name": "tiny",
        "classes": {"alpha": 20, "beta": 13},
        "sampler": {"steps": 3},
        "output": {"path": f"{path.parent}/out", "shard_size": 8},
        "lineage": f"{path.parent}/lineage",
        "seed": 5,
        "execution": {"batch_size": 8},
        **changes,
    }
    path.write_text(yaml.safe_dump({name: value for name, value in values.items() if value is not None}))
    return path


def contents(place: str | Path) -> dict[str, bytes]:
    """Every object of a store by path."""
    store = open_store(str(place))
    return {path: store.read(path) for path, _ in store.entries()}
