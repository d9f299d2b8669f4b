"""What submit refuses before anything is sent: places, addresses, who answers there, what is not installed, tokens."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from raycluster import free_ports

from synthfactory.run.submit import check_places, checked_address, connect
from synthfactory.spec.errors import InputError
from synthfactory.spec.load import parse_spec
from synthfactory.spec.schema import Spec

pytest.importorskip("aiohttp")

ADDRESS = "http://127.0.0.1:8265"
TEXT = """\
name: tiny
model: phantom
classes: {alpha: 3}
embeddings: {bank: s3://bucket/bank.parquet}
output: {path: /data/out}
lineage: /data/lineage
"""


def spec_of(text: str) -> Spec:
    return parse_spec(text, "spec.yaml")


def test_tile_folders_and_their_metadata_are_checked_too() -> None:
    text = TEXT.replace("{bank: s3://bucket/bank.parquet}", "{tiles: tiles, metadata: tiles.csv, label_level: tile}")
    with pytest.raises(InputError, match=r"embeddings\.tiles: .*\n.*embeddings\.metadata: .* an absolute path on"):
        check_places(spec_of(text))


def test_ledger_and_holdout_are_checked_too() -> None:
    asked = "{mechanism: dp, epsilon: 1, population: {alpha: 999, beta: 999}, cohort: c, label_level: tile, "
    asked += "ledger: ~/ledger, projection: p.safetensors}"
    with pytest.raises(InputError, match=r"privacy\.ledger: '~/ledger' .*\n.*privacy\.projection: 'p\.safetensors' "):
        check_places(spec_of(TEXT + f"\nprivacy: {asked}\n"))
    with pytest.raises(InputError, match=r"screen\.nearest_real\.holdout: 'h\.parquet' would"):
        check_places(spec_of(TEXT + "\nscreen: {nearest_real: {holdout: h.parquet}}\n"))


def test_files_of_real_counts_are_checked_too() -> None:
    text = TEXT.replace("{alpha: 3}", "{alpha: {}}") + "total: 3\nbalance: {kind: proportional, against: cohort.csv}\n"
    with pytest.raises(InputError, match=r"balance\.against: 'cohort\.csv' would be looked up where the job runs"):
        check_places(spec_of(text))
    check_places(spec_of(text.replace("cohort.csv", "s3://bucket/cohort.csv")))


@pytest.mark.parametrize("place", ["/a/b", "file:///a/b", "s3://bucket/b", "simplecache::s3://bucket/b"])
def test_urls_and_absolute_paths_mean_the_same_everywhere(place: str) -> None:
    check_places(spec_of(TEXT.replace("s3://bucket/bank.parquet", place).replace("phantom", "/models/m")))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:8265", "has no http://"),
        ("auto", "has no http://"),
        ("ray://127.0.0.1:10001", "interactive client"),
        ("ftp://127.0.0.1", "has no http://"),
        ("http://", "is no such address"),
        ("http://host:port", "is no such address"),
        ("http://[::1", "is no such address"),
        ("http://host:8265/?x=1", "is no such address"),
        ("http://ho st:8265", "is no such address"),
    ],
)
def test_wrong_addresses(address: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        checked_address(address)
    assert "http://HOST:8265" in str(caught.value)


def test_password_in_the_address_is_refused_and_not_repeated() -> None:
    for address in ("http://me:hunter2@host:8265", "me:hunter2@host"):
        with pytest.raises(InputError) as caught:
            checked_address(address)
        assert "hunter2" not in str(caught.value)


def test_slash_at_the_end_is_no_difference() -> None:
    assert checked_address("https://head/ray/") == "https://head/ray"


def test_nothing_answers() -> None:
    (port,) = free_ports(1)
    with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}: nothing answers there \(Connection refused\)"):
        connect(f"http://127.0.0.1:{port}")


def test_address_given_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}: nothing answers"):
        connect(f"http://127.0.0.1:{port}")
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:2"


@pytest.fixture(params=[(404, b"no"), (200, b"<html>"), (200, b"[]"), (200, b"{}"), (502, b"")])
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    """A web server that is no dashboard."""
    status, body = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_something_else_answers(stranger: str) -> None:
    with pytest.raises(InputError, match="what answers there is no dashboard of Ray's") as caught:
        connect(stranger)
    assert "\n" not in str(caught.value)


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env={**clean, **environment}, capture_output=True, text=True
    )


ATTEMPT = """
import sys
from synthfactory.spec.errors import InputError
{before}
from synthfactory.run.submit import connect
try:
    connect({address!r})
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("absent", ["aiohttp", "ray.job_submission"])
def test_without_the_job_client_one_message_says_what_to_install(absent: str) -> None:
    result = python(ATTEMPT.format(before=f"sys.modules[{absent!r}] = None", address=ADDRESS))
    assert (result.stderr, result.returncode) == ("", 0)
    assert 'pip install "synthfactory[jobs]"' in result.stdout


def test_importing_the_module_imports_no_ray() -> None:
    result = python("import sys; sys.modules['ray'] = None; import synthfactory.run.submit")
    assert (result.stderr, result.returncode) == ("", 0)


def test_token_that_is_missing_or_cannot_be_sent_is_never_shown(tmp_path: Path) -> None:
    program = ATTEMPT.format(before="", address=f"http://127.0.0.1:{free_ports(1)[0]}")
    missing = python(program, RAY_AUTH_MODE="token", HOME=str(tmp_path))
    assert "RAY_AUTH_MODE asks for a token, and none can be read here; set RAY_AUTH_MODE=token, and" in missing.stdout
    for token in ("hunter2\nhunter3", "hunter2 \u20ac hunter3"):
        result = python(program, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
        assert "the token found here is no line of plain text" in result.stdout
        assert "hunter" not in result.stdout + result.stderr
