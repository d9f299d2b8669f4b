"""Bad input at the command line: status 2, one message, no traceback, nothing written. The specs' own are in test_cli_input.py."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cli_checks import check_refusal, snapshot
from running import contents, run
from s3server import Bucket

MakeSpec = Callable[..., Path]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("field", ["output", "lineage"])
def test_places_without_permission(spec_file: MakeSpec, tmp_path: Path, field: str) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    place = f"{tmp_path}/locked/deep/out"
    ended = run("build", spec_file(**({"output": {"path": place}} if field == "output" else {field: place})), "--local")
    check_refusal(ended, f"no permission to write in {tmp_path}/locked")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["locked", "spec.yaml"]


def test_places_without_permission_are_asked_for(
    spec_file: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != tmp_path)
    spec = spec_file()
    ended = run("build", spec, "--local")
    check_refusal(ended, f"output.path: no permission to write in {tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spec.yaml"]


def test_specs_that_cannot_be_read(tmp_path: Path) -> None:
    check_refusal(run("build", tmp_path / "none.yaml"), "none.yaml: no such file; name a spec such as specs/demo.yaml")
    check_refusal(run("plan", tmp_path), "is a folder; name a spec")
    (tmp_path / "bad.yaml").write_text("name: demo\nmodle: phantom\n")
    check_refusal(run("build", tmp_path / "bad.yaml"), f"{tmp_path}/bad.yaml:2:")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bulid", "SPEC"], "No such command 'bulid'"),
        (["build", "SPEC", "--wokers", "2"], "No such option"),
        (["build"], "Missing argument 'SPEC.yaml'"),
        (["build", "SPEC", "--local", "--workers", "2"], "--local works in this one process"),
        (["build", "SPEC", "--local", "--address", "auto"], "--local works in this one process"),
        (["build", "SPEC", "--workers", "0"], "0 is not in the range"),
        (["build", "SPEC", "--workers", "two"], "'two' is not a valid integer"),
        (["build", "SPEC", "more"], "unexpected extra argument"),
        (["pilot", "SPEC", "--tiles", "65"], "65 is not in the range"),
        (["submit", "SPEC"], "Missing option '--address'"),
        (["phantom", "tiles", "x", "--cohort", "dev"], "'dev' is not one of 'train', 'bank', 'heldout'"),
        (
            ["phantom", "tiles", "x", "--cohort", "bank", "--class", "gland"],
            "--class gland: is none of phantom-gland, phantom-solid, ",
        ),
    ],
)
def test_commands_and_options_that_do_not_exist(
    spec_file: MakeSpec, tmp_path: Path, arguments: list[str], words: str
) -> None:
    spec = str(spec_file())
    before = snapshot(tmp_path)
    ended = run(*(spec if argument == "SPEC" else argument for argument in arguments))
    check_refusal(ended, words)
    assert snapshot(tmp_path) == before


def test_phantom_tiles_of_one_class_and_other_patients(tmp_path: Path) -> None:
    asked = ["--cohort", "bank", "--per-class", 3, "--class", "phantom-stroma", "--first-patient", 40]
    ended = run("phantom", "tiles", tmp_path / "tiles", *asked)
    assert ended.code == 0, ended.err
    assert [path.name for path in (tmp_path / "tiles").iterdir() if path.is_dir()] == ["phantom-stroma"]
    assert sorted(path.stem for path in (tmp_path / "tiles").glob("*/*.png")) == [
        f"bank-stroma-000{number}-000" for number in (40, 41, 42)
    ]


COMMANDS = [["status"], ["verify"], ["verify", "--quick"], ["gc"], ["gc", "--dry-run"], ["preview"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_places_that_hold_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    for name, words in [
        ("none", "none: holds no set (no spec.lock.yaml); name the output.path of a build"),
        ("empty", "empty: holds no set"),
        ("other", "other: holds thesis.docx, but no spec.lock.yaml, so it is no set of synthfactory's"),
        ("other/thesis.docx", "thesis.docx: is a file, or lies below one; name a folder or a URL"),
        ("gopher://hole", "gopher://hole: cannot be opened by fsspec"),
    ]:
        check_refusal(run(*command, name), words)
    assert snapshot(tmp_path) == before


# Object stores that cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["output", "lineage", "bank"])
def test_buckets_that_do_not_exist(s3: Bucket, spec_file: MakeSpec, tmp_path: Path, field: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "output": {"output": {"path": "s3://nowhere/out"}},
        "lineage": {"output": {"path": s3.url}, "lineage": "s3://nowhere/lineage"},
        "bank": {"output": {"path": s3.url}, "embeddings": {"bank": "s3://nowhere/bank.parquet"}},
    }
    spec = spec_file(**changes[field])
    ended = run("build", spec, "--local")
    check_refusal(ended, "there is no bucket 'nowhere'")
    assert f"Error: {spec}:" in ended.err
    assert contents(s3.url) == {}
    assert snapshot(tmp_path) == {"spec.yaml": spec.read_bytes()}


def test_buckets_that_hold_no_set(s3: Bucket) -> None:
    for command in COMMANDS:
        check_refusal(run(*command, s3.url), f"{s3.url}: holds no set")
    check_refusal(run("status", "s3://nowhere/out"), "there is no bucket 'nowhere'")


def test_missing_credentials(s3: Bucket, spec_file: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_file(output={"path": s3.url})
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    ended = run("build", spec, "--local")
    check_refusal(ended, "no credentials")
    assert f"Error: {spec}:" in ended.err
    check_refusal(run("verify", s3.url), "no credentials")
    assert snapshot(tmp_path) == {"spec.yaml": spec.read_bytes()}


class Refusing(BaseHTTPRequestHandler):
    """A store that knows the client, and lets it do nothing."""

    def do_GET(self) -> None:
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return None


def test_refused_credentials(s3: Bucket, spec_file: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        spec = spec_file(lineage="s3://tiles/lineage")
        ended = run("build", spec, "--local")
        server.shutdown()
        thread.join()
    check_refusal(ended, "lineage: s3://tiles/lineage: no permission to list it (Access Denied)")
    assert snapshot(tmp_path) == {"spec.yaml": spec.read_bytes()}
