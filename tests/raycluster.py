"""A Ray cluster of one node on loopback, with a token of its own; ended by the pids that it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOKEN = "0f" * 32
START_SEC = 60.0
PORTS = [
    *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"),
    *("runtime-env-agent-port", "ray-client-server-port", "node-manager-port", "object-manager-port"),
]


@dataclass(frozen=True)
class Cluster:
    """Where the dashboard is, where Ray itself is, the environment that the token is found in, and a folder that its processes name."""

    address: str
    port: int
    ray_address: str
    environment: dict[str, str]
    folder: str


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _answers(address: str) -> bool:
    asked = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
    with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=2) as reply:
        return bool(reply.status == 200)
    return False


def _pids_naming(folder: str) -> list[int]:
    """Processes with the folder, which is this cluster's alone, in their command line."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            with contextlib.suppress(OSError):
                if folder.encode() in (place / "cmdline").read_bytes():
                    found.append(int(place.name))
    return found


def workers_named(cluster: Cluster, words: str) -> list[int]:
    """Pids of the cluster's Ray workers with these words in their title: children of its processes."""
    ours, found = set(_pids_naming(cluster.folder)), []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in ours and words.encode() in (place / "cmdline").read_bytes():
                    found.append(int(place.name))
    return found


@contextlib.contextmanager
def serve_cluster(token_file: Path) -> Iterator[Cluster]:
    token_file.write_text(TOKEN)
    folder = tempfile.mkdtemp(prefix="sfj-", dir="/tmp")  # short: sockets lie below it
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or its processes listen beyond loopback
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}/r"),
        *("--num-cpus=2", "--object-store-memory=100000000"),
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    log = open(f"{folder}/start.log", "wb")  # noqa: SIM115  closed below
    head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        until = time.monotonic() + START_SEC
        while not _answers(address):
            assert head.poll() is None, Path(f"{folder}/start.log").read_text()
            assert time.monotonic() < until, Path(f"{folder}/start.log").read_text()
            time.sleep(0.1)
        yield Cluster(address, ports["dashboard-port"], f"127.0.0.1:{ports['port']}", environment, folder)
    finally:
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(45)
        for pid in _pids_naming(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait(10)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)
