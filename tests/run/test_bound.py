"""One lineage, one set; and a build that is refused leaves both as they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from running import run

MakeSpec = Callable[..., Path]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_lineage_is_one_sets(spec_file: MakeSpec, tmp_path: Path) -> None:
    """Else what is taken back of one set would be taken from the other's lineage."""
    first = spec_file()
    assert run("build", first, "--local").code == 0
    before = tree(tmp_path / "lineage")
    other = spec_file("other.yaml", output={"path": str(tmp_path / "out2")})
    for command in (("plan", other), ("build", other, "--local"), ("pilot", other)):
        refused = run(*command)
        assert refused.code == 2 and f"lineage: is that of the set {tmp_path}/out" in " ".join(refused.err.split())
    assert not (tmp_path / "out2").exists() and tree(tmp_path / "lineage") == before
    (tmp_path / "out").rename(tmp_path / "out2")  # a set that was moved takes its lineage with it
    assert run("build", other, "--local").code == 0
    shutil.copytree(tmp_path / "lineage", tmp_path / "lineage2")
    shutil.copytree(tmp_path / "out2", tmp_path / "out")
    assert run("build", first, "--local").code == 2
    copied = spec_file(lineage=str(tmp_path / "lineage2"))
    assert run("build", copied, "--local").code == 0


def test_a_lineage_stays_with_a_set_that_was_moved(spec_file: MakeSpec, tmp_path: Path) -> None:
    assert run("build", spec_file(), "--local").code == 0
    (tmp_path / "out").rename(tmp_path / "archive")
    elsewhere = spec_file("elsewhere.yaml", seed=9, output={"path": str(tmp_path / "new")})
    refused = run("build", elsewhere, "--local")  # what it has of the moved set would be cleared away as nobody's
    assert refused.code == 2 and f"lineage: is that of the set {tmp_path}/out" in " ".join(refused.err.split())
    assert not (tmp_path / "new").exists()


def test_an_archived_set_keeps_its_lineage_whatever_stands_where_it_stood(spec_file: MakeSpec, tmp_path: Path) -> None:
    assert run("build", spec_file(), "--local").code == 0
    (tmp_path / "out").rename(tmp_path / "archive")
    assert run("build", spec_file(seed=9, lineage=str(tmp_path / "lineage2")), "--local").code == 0
    moved = spec_file(output={"path": str(tmp_path / "archive")})
    assert run("plan", moved).code == 0
    assert run("build", moved, "--local").code == 0


def test_a_refused_build_adds_no_round(spec_file: MakeSpec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("build", spec_file(classes={"alpha": 5, "beta": 5}), "--local").code == 0
    (out / "commits/000000.json").unlink()
    before = tree(out)
    for command in (["plan"], ["build", "--local"]):
        refused = run(*command, spec_file(classes={"alpha": 30}))
        assert refused.code == 2 and "classes: beta has tiles still to draw" in refused.err
        assert tree(out) == before
    assert run("build", spec_file(classes={"alpha": 5, "beta": 5}), "--local").code == 0
