"""A machine that lacks something: packages, a home, characters, a place that can be written to. One message each, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_checks import check_refusal
from running import Ended, run

import train

WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
from {module} import main
main()
"""


def without(package: str, *arguments: object, module: str = "synthfactory.cli") -> Ended:
    """A command where this package is not installed."""
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(package=package, module=module), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.parametrize("package", ["torch", "diffusers", "ray"])
def test_a_build_without_a_package_says_which(package: str, spec_file: Callable[..., Path]) -> None:
    ended = without(package, "build", spec_file())
    check_refusal(ended, f"Error: {package} is not installed")
    assert f"pip install {package}" in ended.err
    assert ("--local" in ended.err) == (package == "ray")


@pytest.mark.parametrize("package", ["torch", "ray"])
def test_a_training_run_without_a_package_says_which(package: str, tmp_path: Path) -> None:
    config = Path(train.__file__).parent / "configs/phantom-encoder.yaml"
    words = ("run", config, "--run", tmp_path / "run", "--workers", 2)
    check_refusal(without(package, *words, module="train.cli"), f"Error: {package} is not installed")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("package", ["torch", "diffusers"])
def test_doctor_reports_what_is_not_installed_as_a_failed_check(package: str, spec_file: Callable[..., Path]) -> None:
    ended = without(package, "doctor", spec_file())
    assert ended.code == 1, ended.err
    lines = {line[6:].split()[0]: line for line in ended.out.splitlines()}
    assert lines["packages"].startswith("fail") and package in lines["packages"]
    assert lines["output"].startswith("ok"), "the others are made all the same"
    assert ended.err == ""


@pytest.mark.parametrize(
    "fault",
    [RuntimeError("Could not determine home directory."), PermissionError(13, "Permission denied", "/home/x/.ray")],
)
def test_where_ray_finds_no_home_the_message_says_what_it_needs(
    fault: Exception, spec_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(*given: Any, **also: Any) -> None:
        raise fault

    monkeypatch.setattr("ray.init", init)
    ended = run("build", spec_file())
    assert ended.code == 2
    last = ended.err.splitlines()[-1]
    assert last.startswith("Error: Ray does not start") and str(fault) in last
    assert "set HOME" in last and "--local" in last
    checked = run("doctor")
    line = next(line for line in checked.out.splitlines() if line[6:].startswith("ray "))
    assert (checked.code, line[:4]) == (1, "fail")
    assert line.count("does not start") == 1 and "set HOME" in line


def test_characters_that_the_output_lacks_are_escaped(spec_file: Callable[..., Path], tmp_path: Path) -> None:
    spec = spec_file(output={"path": str(tmp_path / "組織")})
    ended = subprocess.run(
        [sys.executable, "-c", "from synthfactory.cli import main; main()", "plan", str(spec)],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert rb"\u7d44\u7e54" in ended.stdout and b"total" in ended.stdout


def test_a_draft_that_cannot_be_written_is_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Path.write_text

    def refuse(path: Path, *given: Any, **also: Any) -> int:
        if path.name == "own.yaml":
            raise PermissionError(13, "Permission denied", str(path))
        return written(path, *given, **also)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "write_text", refuse)
    ended = run("init", tiny / "bank.parquet", "own.yaml", "--model", tiny / "model")
    check_refusal(ended, "Error: own.yaml: cannot be written (Permission denied)")
