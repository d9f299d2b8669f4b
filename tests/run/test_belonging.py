"""Who may build into an output: refused before anything is written, whatever way the mistake takes."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from running import run
from tinymodel import make_bank_file

from synthfactory.plan.plan import Plan
from synthfactory.report.status import first_tiles
from synthfactory.run import at_work, driver
from synthfactory.run.budget import RunBudget, spent_before
from synthfactory.run.local import LocalPool
from synthfactory.run.prepare import prepare
from synthfactory.run.result import BuildResult
from synthfactory.run.task import OUT_OF_BUDGET, UnitResult
from synthfactory.shards.local import LocalStore
from synthfactory.shards.reader import iter_tiles
from synthfactory.shards.seal import sealed
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.load import load_spec

MakeSpec = Callable[..., Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 6},
        {"sampler": {"steps": 4}},
        {"name": "other"},
        {"output": {"path": "OUT", "shard_size": 10, "format": "webp"}},
        {"execution": {"batch_size": 4}},
        {"execution": {"batch_size": 16, "threads": 1, "strict": True}},
    ],
    ids=str,
)
def test_plan_refuses_what_build_refuses(spec_file: MakeSpec, out: Path, change: dict[str, Any]) -> None:
    assert run("build", spec_file(), "--local").code == 0
    before = tree(out.parent)
    if "output" in change:
        change = {"output": {**change["output"], "path": str(out)}}
    changed = spec_file("changed.yaml", **change)
    planned, built = run("plan", changed), run("build", changed, "--local")
    assert (planned.code, built.code) == (2, 2), planned.out
    assert planned.err.splitlines()[-1] == built.err.splitlines()[-1]
    assert str(changed) in " ".join(built.err.split())
    changed.unlink()
    assert tree(out.parent) == before


def test_a_bank_that_names_other_sites_is_another_bank(spec_file: MakeSpec, tiny: Path, tmp_path: Path) -> None:
    bank = make_bank_file(tmp_path / "b.parquet", tiny / "model", sites=2)
    spec = spec_file(embeddings={"bank": str(bank)})
    assert run("build", spec, "--local").code == 0
    make_bank_file(bank, tiny / "model", sites=3)
    ended = run("build", spec, "--local")
    assert ended.code == 2
    assert "its rows in the bank (embeddings, patients, slides, sites" in " ".join(ended.err.split())


def test_another_classes_keys_are_not_given_again(spec_file: MakeSpec, tiny: Path, out: Path, tmp_path: Path) -> None:
    bank = make_bank_file(tmp_path / "b.parquet", tiny / "model", classes={"a b": 3, "A-B": 3})
    source = {"embeddings": {"bank": str(bank)}}
    assert run("build", spec_file(classes={"a b": 2}, **source), "--local").code == 0
    ended = run("build", spec_file(classes={"A-B": 2}, **source), "--local")
    assert ended.code == 2
    assert "gives the same keys as class 'a b'" in " ".join(ended.err.split())


def test_lineage_is_not_hidden_in_an_output_by_a_link(spec_file: MakeSpec, out: Path, tmp_path: Path) -> None:
    assert run("build", spec_file(), "--local").code == 0
    before = tree(out)
    (tmp_path / "link").symlink_to(out)
    for place in (tmp_path / "link", tmp_path / "link" / "below", out / ".." / "link" / "x"):
        ended = run("build", spec_file("l.yaml", lineage=str(place)), "--local")
        assert ended.code == 2
        assert "lineage" in ended.err
    other = run("build", spec_file("o.yaml", lineage=str(out), output={"path": str(tmp_path / "o2")}), "--local")
    assert other.code == 2
    assert "is a tile set" in " ".join(other.err.split())
    inside = run("build", spec_file("i.yaml", output={"path": str(out / "shards" / "x")}), "--local")
    assert inside.code == 2
    assert tree(out) == before
    assert not (tmp_path / "o2").exists()


def test_two_builds_that_add_classes_at_once_never_share_an_index(
    spec_file: MakeSpec, tiny: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read the output before either writes: one round is created, the other build is told to come again."""
    bank = make_bank_file(tmp_path / "b.parquet", tiny / "model", classes={"one": 3, "two": 3, "three": 3})
    source = {"embeddings": {"bank": str(bank)}}

    def build(path: Path) -> None:
        driver.build(
            prepare(load_spec(str(path))),
            lambda setup, tick: LocalPool(setup, tick),
            say=lambda text: None,
            use_lease=False,
        )

    build(spec_file("1.yaml", classes={"one": 4}, **source))
    second = spec_file("2.yaml", classes={"one": 4, "two": 4}, **source)
    third = spec_file("3.yaml", classes={"one": 4, "three": 4}, **source)
    lay_out = driver._laid_out

    def late(plan: Plan, *rest: Any) -> Any:
        monkeypatch.setattr(driver, "_laid_out", lay_out)
        build(third)
        return lay_out(plan, *rest)

    monkeypatch.setattr(driver, "_laid_out", late)
    with pytest.raises(InputError, match="another build has just added round 1"):
        build(second)
    build(second)
    lock = yaml.safe_load((out / "spec.lock.yaml").read_text())
    assert [entry["name"] for entry in lock["classes"]] == ["one", "three", "two"]
    indices = {(record["label"], record["class_index"]) for _, _, record in iter_tiles(str(out))}
    assert indices == {("one", 0), ("three", 1), ("two", 2)}
    # The lock's file is a copy of what rounds say: an older one is renewed.
    shrunk = {**lock, "classes": lock["classes"][:1]}
    for part in ("class_banks", "class_samplers"):
        shrunk["recipe"] = {**shrunk["recipe"], part: {k: v for k, v in lock["recipe"][part].items() if k == "one"}}
    (out / "spec.lock.yaml").write_text(yaml.safe_dump(sealed(shrunk)))
    build(third)
    assert yaml.safe_load((out / "spec.lock.yaml").read_text()) == lock
    assert run("verify", out).code == 0


def test_the_secret_and_its_folder_are_the_owners_alone(spec_file: MakeSpec, out: Path) -> None:
    assert run("build", spec_file(seed="secret"), "--local").code == 0
    lineage = out.parent / "lineage"
    assert [path.stat().st_mode & 0o077 for path in (lineage, lineage / "secret.json")] == [0, 0]


@pytest.mark.parametrize("name", ["x" * 201, "/".join(["deep"] * 700), "a\u200bb"])
def test_places_that_cannot_be_folders(spec_file: MakeSpec, tmp_path: Path, name: str) -> None:
    for change in ({"output": {"path": f"{tmp_path}/{name}"}}, {"lineage": f"{tmp_path}/{name}"}):
        assert run("build", spec_file("long.yaml", **change), "--local").code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["long.yaml"]


def test_an_address_where_nothing_listens(spec_file: MakeSpec, out: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused at once
        ended = run("build", spec_file(), "--address", f"127.0.0.1:{taken.getsockname()[1]}")
    assert ended.code == 2
    assert "no Ray cluster answers there" in " ".join(ended.err.split())
    assert not out.exists()
    assert not (out.parent / "lineage").exists()


def test_device_hours_are_counted_over_runs(spec_file: MakeSpec, out: Path) -> None:
    spec = spec_file(budget={"device_hours": 0.01})
    record = out.parent / "lineage" / "runs" / "earlier" / "unit-000009.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"network_calls": 5, "seconds": {"sample": 40.0}}))
    (record.parent / "unit-000010.json").write_text("")  # cut off
    ended = run("build", spec, "--local")
    assert ended.code == 2
    assert "device-hours beside the 0.0111 already spent" in " ".join(ended.err.split())
    assert not out.exists()
    assert run("build", spec_file(budget={"device_hours": 1.0}), "--local").code == 0


def test_a_budget_is_shared_by_the_units_at_work() -> None:
    budget = RunBudget(100, 1.0, spent=(10, 3000.0))
    assert budget.grant(0, 20, 80)
    assert budget.allowance(0) == 80
    assert not budget.grant(1, 20, 80)  # 10 are left, until unit 0 gives back what it did not need
    budget.settle(0, 30, 300.0)
    assert budget.grant(1, 20, 80)
    assert budget.allowance(1) == 60
    budget.settle(1, 20, 301.0)
    assert not budget.grant(2, 1, 1)
    assert budget.short == "budget.device_hours"


def test_a_unit_that_was_allowed_too_little_waits_for_what_others_give_back() -> None:
    budget = RunBudget(100, None)
    assert budget.grant(0, 10, 80) and budget.grant(1, 10, 80)
    assert budget.allowance(1) == 20
    budget.settle(1, 18, 1.0, enough=False)
    assert not budget.grant(1, 10, 80), "as little as before is of no use"
    budget.settle(0, 10, 1.0)
    assert budget.grant(1, 10, 80)
    assert budget.allowance(1) == 72
    budget.settle(1, 70, 1.0, enough=False)
    assert not budget.grant(1, 1, 80)
    assert budget.short == "budget.network_calls"


def test_calls_of_every_try_of_a_unit_count_for_later_builds(tmp_path: Path) -> None:
    lineage = open_store(str(tmp_path / "lineage"))
    setup = SimpleNamespace(run_id="run", lock={"execution": {"batch_size": 4}})
    result = BuildResult(tiles=0, asked=9, shards=1, shortfall=0)
    for outcome, calls in ((OUT_OF_BUDGET, 18), (OUT_OF_BUDGET, 30), ("committed", 70)):
        unit = UnitResult(0, outcome, 0, 0, 0, calls, 4, seconds={"sample": 5.0})
        at_work._record(unit, setup, lineage, result, print)  # type: ignore[arg-type]
    assert result.network_calls == 118
    assert spent_before(lineage) == (118, 15.0)


def test_a_full_disk_ends_the_build_with_one_line(
    spec_file: MakeSpec, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from synthfactory.run import worker

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker, "commit_shard", full)
    with pytest.raises(OSError, match="No space left"):
        driver.build(prepare(load_spec(str(spec_file()))), LocalPool, say=lambda text: None)


@pytest.mark.parametrize(("field", "value"), [("ranges", None), ("num_shards", 3), ("other", None)])
def test_rounds_that_were_edited_cost_no_good_shard(spec_file: MakeSpec, out: Path, field: str, value: Any) -> None:
    spec = spec_file()
    assert run("build", spec, "--local").code == 0
    path = out / "rounds" / "000000.json"
    step, good = json.loads(path.read_text()), path.read_bytes()
    if field == "ranges":
        step["ranges"]["alpha"][1] -= 1
    elif field == "other":
        step["ranges"]["gamma"] = step["ranges"].pop("beta")
    else:
        step["num_shards"] = value
    path.write_text(json.dumps(step, sort_keys=True, indent=1) + "\n")
    before = tree(out)
    assert run("verify", out).code == 2
    ended = run("build", spec, "--local")
    assert ended.code == 2, ended.out
    assert "rounds/" in ended.err or "classes" in ended.err
    assert tree(out) == before
    path.write_bytes(good)
    assert run("build", spec, "--local").code == 0
    assert run("verify", out).code == 0


def test_a_lock_that_was_edited_does_not_become_the_truth(spec_file: MakeSpec, out: Path) -> None:
    """Whether or not whoever changed it has sealed it again."""
    spec = spec_file()
    assert run("build", spec, "--local").code == 0
    path = out / "spec.lock.yaml"
    good = path.read_bytes()

    def edited(*steps: str, value: Any, seal: bool) -> Any:
        lock: Any = yaml.safe_load(good)
        inner = lock
        for step in steps[:-1]:
            inner = inner[step]
        inner[steps[-1]] = value
        path.write_text(yaml.safe_dump(sealed(lock) if seal else lock))
        before = tree(out)
        ended = run("build", spec, "--local")
        assert ended.code == 2, steps
        assert tree(out) == before
        return " ".join(ended.err.split())

    for steps, value in (
        (("model", "licence", "name"), "MIT"), (("execution", "threads"), 7), (("execution", "batch_size"), 3),
        (("label_levels",), ["slide"]), (("training_cohort",), "unknown"), (("terms", "sharing"), "permitted"),
    ):  # fmt: skip
        assert "was changed since it was written" in edited(*steps, value=value, seal=False)
        assert run("verify", out).code == 2
    licence = edited("model", "licence", "name", value="MIT", seal=True)
    assert "says another licence than the model does" in licence
    swapped = [{"name": name, "class_index": at} for at, name in enumerate(("beta", "alpha"))]
    indices = edited("classes", value=swapped, seal=True)
    assert "has class_index" in indices
    assert "one of both was changed since it was written" in indices
    verified = run("verify", out)
    assert verified.code == 1
    assert "contradicts" in verified.out
    path.write_bytes(good)
    assert run("verify", out).code == 0


def test_gc_takes_the_lineage_of_the_set_alone_and_says_what_it_keeps(
    spec_file: MakeSpec, out: Path, tmp_path: Path
) -> None:
    assert run("build", spec_file(), "--local").code == 0
    (tmp_path / "strange").mkdir()
    for place in (tmp_path / "strange", tmp_path / "nowhere"):
        refused = run("gc", out, "--lineage", place)
        assert refused.code == 2
        assert "holds no record of" in refused.err
    assert run("gc", out, "--lineage", tmp_path / "lineage").code == 0
    (out / "commits" / "000001.json").unlink()
    others = [path.rename(tmp_path / path.name) for path in (out / "commits").iterdir()]
    assert run("gc", out, "--lineage", tmp_path / "strange").code == 2
    assert run("gc", out, "--lineage", tmp_path / "lineage").code == 0
    for path in others:
        path.rename(out / "commits" / path.name)
    assert "kept: objects of 1 shard without a commit" in run("gc", out).out


def test_a_contact_sheet_reads_no_further_than_it_shows(
    spec_file: MakeSpec, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a class has fewer tiles than a row of the sheet: the rest of the set is not read for it."""
    classes = {"alpha": 40, "beta": 2}
    assert run("build", spec_file(classes=classes, output={"path": str(out), "shard_size": 4}), "--local").code == 0
    opened = []
    real = LocalStore.open

    def watched(store: LocalStore, path: str, *more: object, **named: object) -> object:
        opened.append(path)
        return real(store, path, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalStore, "open", watched)
    found = first_tiles(open_store(str(out)), ["alpha", "beta"], 8)
    assert {name: len(tiles) for name, tiles in found.items()} == {"alpha": 8, "beta": 2}
    tars = {path for path in opened if path.endswith(".tar")}
    assert 0 < len(tars) < 6 < len(list((out / "shards").glob("*.tar")))


def test_a_contact_sheet_stays_out_of_the_set(
    spec_file: MakeSpec, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("build", spec_file(), "--local").code == 0
    assert run("preview", out, "-o", out / "sheet.png").code == 2
    assert run("preview", out, "-o", tmp_path / "sheet.jpg").code == 2
    monkeypatch.chdir(out)
    assert run("preview", ".").code == 0
    assert (tmp_path / "out-preview.png").exists()
    assert run("verify", ".").code == 0
