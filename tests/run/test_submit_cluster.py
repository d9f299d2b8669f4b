"""submit against a real Ray cluster on loopback that asks for a token, through the command line as a user types it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from raycluster import TOKEN, Cluster, free_ports, serve_cluster

pytest.importorskip("aiohttp")

SPEC = """\
name: tiny
model: phantom
classes: {alpha: 3}
embeddings: {bank: /data/bank.parquet}
output: {path: /data/out}
lineage: /data/lineage
"""
SUBMIT = [sys.executable, "-m", "synthfactory.cli", "submit"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with serve_cluster(tmp_path_factory.mktemp("cluster") / "token") as running:
        yield running


@pytest.fixture
def spec(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(f"# {request.node.name}\n{SPEC}")
    return path


def acting(program: str) -> list[str]:
    """The command line, with a program of a few lines in place of the build (its argument is the spec)."""
    return starting(f'python -c "{program}"')


def starting(entrypoint: str) -> list[str]:
    heed = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # it may be ignored where tests run
    )
    start = f"{heed}import synthfactory.run.submit as room\nroom.PROGRAM = {entrypoint!r}\nfrom synthfactory.cli import main\nmain()"
    return [sys.executable, "-c", start, "submit"]


def run(
    cluster: Cluster, command: list[str], *arguments: str, address: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [*command, *arguments, "--address", address or cluster.address],
        env={**cluster.environment, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert TOKEN not in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


def job_of(output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith("job ")).split()[1]


def test_job_runs_with_the_spec_and_its_exit_code_comes_back(cluster: Cluster, spec: Path) -> None:
    program = "import sys; print(sys.argv[1:]); print(open(sys.argv[1]).readline().strip()); sys.exit(3)"
    result = run(cluster, acting(program), str(spec), "--workers", "2")
    assert result.returncode == 3, result.stderr
    lines = result.stdout.splitlines()
    assert "['spec.yaml', '--address', 'auto', '--workers', '2']" in lines
    assert spec.read_text().splitlines()[0] in lines
    assert lines[-1] == f"job {job_of(result.stdout)} ended with exit code 3"
    assert result.stderr == ""

    none = run(cluster, SUBMIT, str(spec), RAY_AUTH_MODE="disabled")
    assert none.returncode == 2
    assert (
        "the cluster asks for a token, and none was sent; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH"
        in none.stderr
    )
    wrong = run(cluster, SUBMIT, str(spec), RAY_AUTH_TOKEN="1e" * 32)
    assert wrong.returncode == 2
    assert "the cluster refuses the token that was sent" in wrong.stderr
    assert "1e1e" not in wrong.stderr


@contextlib.contextmanager
def following(
    cluster: Cluster, command: list[str], spec: Path, address: str | None = None
) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [*command, str(spec), "--address", address or cluster.address],
        env={**cluster.environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def read_until(child: subprocess.Popen[str], words: str) -> str:
    assert child.stdout is not None
    seen = []
    for line in child.stdout:
        seen.append(line)
        if words in line:
            return "".join(seen)
    raise AssertionError("".join(seen))


@pytest.mark.slow
def test_interrupted_following_leaves_the_job_and_the_same_command_joins_it(
    cluster: Cluster, spec: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    program = (
        f"import pathlib, sys, time; print('begun'); gate = pathlib.Path('{gate}')\n"
        "while not gate.exists(): time.sleep(0.1)\n"
        "print('through'); sys.exit(7)"
    )
    with following(cluster, acting(program), spec) as first:
        output = read_until(first, "begun\n")
        first.send_signal(signal.SIGINT)
        rest, _ = first.communicate(timeout=60)
        assert first.returncode == 130
        assert "no longer following job" in rest
    again = run(cluster, acting(program), str(spec), "--no-follow")
    assert again.returncode == 0
    assert job_of(again.stdout) == job_of(output)
    with following(cluster, acting(program), spec) as second:
        read_until(second, "begun\n")
        gate.touch()
        rest, _ = second.communicate(timeout=60)
        assert second.returncode == 7
        assert "through\n" in rest


@pytest.mark.slow
def test_three_submissions_at_once_are_one_job(cluster: Cluster, spec: Path) -> None:
    command = acting("import sys, time; time.sleep(6); sys.exit(5)")
    with contextlib.ExitStack() as open_ones:
        children = [open_ones.enter_context(following(cluster, command, spec)) for _ in range(3)]
        outputs = [child.communicate(timeout=90)[0] for child in children]
    assert [child.returncode for child in children] == [5, 5, 5], outputs
    assert len({job_of(output) for output in outputs}) == 1


class Relay:
    """Passes bytes between clients and the dashboard; `cut` breaks every connection, and none is taken until `mend`."""

    def __init__(self, target: int) -> None:
        self._target, (self.port,) = target, free_ports(1)
        self._open: list[socket.socket] = []
        self.mend()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.slow
def test_broken_connection_is_taken_up_again(cluster: Cluster, spec: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    program = (
        f"import pathlib, sys, time; print('begun'); gate = pathlib.Path('{gate}')\n"
        "while not gate.exists(): time.sleep(0.1)\n"
        "print('through'); sys.exit(3)"
    )
    relay = Relay(cluster.port)
    with following(cluster, acting(program), spec, f"http://127.0.0.1:{relay.port}") as child:
        read_until(child, "begun\n")
        relay.cut()
        read_until(child, "is lost (Connection refused); the job goes on, trying again")
        gate.touch()
        relay.mend()
        rest, _ = child.communicate(timeout=60)
        relay.cut()
    assert child.returncode == 3
    assert rest.splitlines()[:2] == ["connected again", "through"]


@pytest.mark.slow
def test_stopped_killed_and_absent_programs(cluster: Cluster, spec: Path) -> None:
    killed = run(cluster, acting("import os; os.kill(os.getpid(), 9)"), str(spec))
    assert killed.returncode == 137
    absent = run(cluster, acting("import synthfactory_that_is_not_here"), str(spec))
    assert (absent.returncode, "is not installed on the cluster" in absent.stdout) == (1, False)
    absent = run(cluster, starting("python -S -m synthfactory.cli build"), str(spec))  # -S: without site-packages
    assert (absent.returncode, "is not installed on the cluster" in absent.stdout) == (1, True)
    absent = run(cluster, starting("no-such-python -m synthfactory.cli build"), str(spec))
    assert (absent.returncode, "is not installed on the cluster" in absent.stdout) == (127, True)
    with following(cluster, acting("import time; print('begun'); time.sleep(100)"), spec) as child:
        job_id = job_of(read_until(child, "begun\n"))
        ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--no-wait", job_id]
        assert run(cluster, ray).returncode == 0
        rest, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"job {job_id} was stopped" in rest


@pytest.mark.slow
def test_real_build_ends_resumes_and_fails_as_a_job(cluster: Cluster, tmp_path: Path) -> None:
    from tinymodel import make_bank_file, make_tiny_model

    model = make_tiny_model(tmp_path / "model")
    bank = make_bank_file(tmp_path / "bank.parquet", model)
    out, spec = tmp_path / "out", tmp_path / "set.yaml"
    text = (
        f"name: tiny\nmodel: {model}\nclasses: {{alpha: 9, beta: 5}}\nembeddings: {{bank: {bank}}}\n"
        f"sampler: {{steps: 2}}\noutput: {{path: {out}, shard_size: 4}}\nlineage: {tmp_path / 'lineage'}\nseed: 1\n"
        "execution: {batch_size: 4, threads: 1}\n"
    )
    spec.write_text(text)
    first = run(cluster, SUBMIT, str(spec), "--workers", "2")
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"14 of 14 tiles in 4 shards in {out}" in " ".join(first.stdout.split())  # long lines are wrapped
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    checked = subprocess.run(
        [sys.executable, "-m", "synthfactory.cli", "verify", str(out)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr

    second = run(cluster, SUBMIT, str(spec))
    assert second.returncode == 0, second.stdout + second.stderr
    assert job_of(second.stdout) != job_of(first.stdout)
    assert "nothing to draw" in second.stdout
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not any(TOKEN.encode() in data for data in before.values())

    spec.write_text(text.replace("beta", "gamma"))
    wrong = run(cluster, SUBMIT, str(spec))
    assert wrong.returncode == 2
    assert f"Error: {spec.name}:3:" in wrong.stdout
    assert "classes.gamma" in wrong.stdout
