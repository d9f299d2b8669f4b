"""doctor: one line a check, the next step in it, and never a token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_checks import check_refusal, snapshot
from hubserver import GRANTED, STRANGER, Hub, environment, serve_hub
from miniencoder import WIDTH as ENCODER_WIDTH
from miniencoder import write_published
from minirepo import FORM, make_repo
from running import Ended, run

from synthfactory.run import doctor
from synthfactory.shards.local import LocalStore

CYTOSYN, H0_MINI = "Owkin-Bioptimus/CytoSyn", "bioptimus/H0-mini"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as server:
        for name, value in environment(server, tmp_path / "home", GRANTED).items():
            monkeypatch.setenv(name, value)
        server.add(CYTOSYN, gated=True, licence="cc-by-nc-nd-4.0").commit(make_repo())
        server.add(H0_MINI, gated=True, licence="cc-by-nc-nd-4.0").commit({"config.json": b"{}"})
        yield server


Examine = Callable[..., Ended]


@pytest.fixture
def examine(hub: Hub, tmp_path: Path, tiny: Path) -> Examine:
    def of(*arguments: str, **changes: Any) -> Ended:
        values = {
            "name": "t",
            "model": {"name": "cytosyn", "revision": hub.repos[CYTOSYN].refs["main"], "trust_remote_code": True},
            "classes": {"alpha": 4},
            "embeddings": {"bank": str(tiny / "bank.parquet")},
            "sampler": {"method": "pipeline"},
            "output": {"path": str(tmp_path / "set/out")},
            "lineage": str(tmp_path / "set/lineage"),
            "terms": {"accept": ["CC-BY-NC-ND-4.0"]},
            **changes,
        }
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(values))
        before = snapshot(tmp_path / "set") if (tmp_path / "set").exists() else None
        ended = run("doctor", tmp_path / "spec.yaml", "--no-ray", *arguments)
        after = snapshot(tmp_path / "set") if (tmp_path / "set").exists() else None
        assert before == after
        assert GRANTED not in ended.out + ended.err
        assert STRANGER not in ended.out + ended.err
        return ended

    return of


def line(ended: Ended, what: str) -> str:
    return next(found for found in ended.out.splitlines() if found[6:].startswith(what))


def test_all_is_well(examine: Examine) -> None:
    ended = examine()
    assert ended.code == 0, ended.out
    for what in ("output", "lineage", "room", "token", "access", "model", "licences", "memory"):
        assert line(ended, what).startswith("ok"), ended.out
    assert CYTOSYN in line(ended, "access")
    assert H0_MINI not in ended.out  # a bank of embeddings needs no encoder


def test_the_encoders_gate_counts_only_where_something_is_embedded(examine: Examine, hub: Hub) -> None:
    ended = examine(screen={"agreement": {}})
    assert f"{H0_MINI} at " in ended.out
    del hub.repos[H0_MINI]
    assert examine().code == 0
    assert examine(screen={"agreement": {}}).code == 1


def test_gates_name_the_page_to_ask_at(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    ended = examine()
    assert ended.code == 1
    assert line(ended, "access").startswith("fail")
    assert f"ask for access at https://huggingface.co/{CYTOSYN}" in line(ended, "access")
    monkeypatch.delenv("HF_TOKEN")
    ended = examine()
    assert line(ended, "token").startswith("fail")
    assert "hf auth login" in line(ended, "token")
    assert f"https://huggingface.co/{CYTOSYN}" in line(ended, "access")


def test_access_is_asked_for_though_the_cache_holds_all(examine: Examine, hub: Hub) -> None:
    assert examine().code == 0
    hub.granted.clear()  # the gate closed meanwhile
    assert line(examine(), "access").startswith("fail")


def test_the_encoders_gate_of_a_model_on_this_machine(
    examine: Examine, hub: Hub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that only names H0-mini: its configuration lies in the cache, its weights behind a gate that closed meanwhile."""
    files = {path.name: path.read_bytes() for path in write_published(tmp_path / "h0", side=32).iterdir()}
    hub.repos[H0_MINI].commit(files)
    folder = Path(shutil.copytree(tiny / "model", tmp_path / "native"))
    (folder / "encoder.safetensors").unlink()
    values = json.loads((folder / "config.json").read_text())
    values["encoder"] = {"id": H0_MINI}
    values["sit"]["condition_width"] = ENCODER_WIDTH
    del values["files"]["encoder.safetensors"]
    (folder / "config.json").write_text(json.dumps(values))
    given = {"model": str(folder), "sampler": {"steps": 2}, "screen": {"agreement": {}}}
    assert line(examine(**given), "access").startswith("ok")
    hub.granted.clear()
    ended = examine(**given)
    assert ended.code == 1
    assert f"ask for access at https://huggingface.co/{H0_MINI}" in line(ended, "access")
    assert "access" not in examine(**{**given, "screen": {}}).out
    assert "access" not in examine(**{**given, "model": str(tiny / "model")}).out  # which holds its encoder


def test_a_token_that_no_header_can_carry(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_é-secret")
    ended = examine()
    assert ended.code == 1
    assert "holds characters that no token has" in line(ended, "access")
    assert "secret" not in ended.out + ended.err
    ended = run("model", "show", "cytosyn")
    check_refusal(ended, "holds characters that no token has")
    assert "secret" not in ended.err


def test_what_the_spec_gets_wrong_is_one_failed_line(examine: Examine) -> None:
    ended = examine(terms={})
    assert ended.code == 1
    assert "terms.accept" in line(ended, "model")
    ended = examine(sampler={"steps": 3})
    assert "write method: pipeline" in line(ended, "model")
    ended = examine(model={"name": "cytosyn", "pipeline": FORM})
    assert "trust_remote_code: true" in line(ended, "model")


def test_places_that_cannot_hold_a_set_are_said(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    ended = examine(output={"path": str(tmp_path / "file/out")})
    assert ended.code == 1
    assert line(ended, "output").startswith("fail")
    monkeypatch.setattr(
        LocalStore, "create", lambda self, path, content: (Path(self.root) / path).write_bytes(content) > 0
    )
    ended = examine()
    assert "a second writer would overwrite the first" in line(ended, "output")


def test_a_store_that_cannot_be_opened_ends_no_other_check(examine: Examine) -> None:
    ended = examine(output={"path": "nosuchprotocol://bucket/out"})
    assert ended.code == 1
    assert line(ended, "output").startswith("fail")
    assert line(ended, "model") and line(ended, "access")


def test_what_the_page_cache_holds_is_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        pytest.skip("this machine does not tell")
    available = 1024 * int(meminfo.read_text().split("MemAvailable:")[1].split()[0])
    assert doctor.free_memory() == pytest.approx(available, rel=0.2)


def test_too_little_memory_or_room_fails(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda: 10**8)
    ended = examine(classes={"alpha": 10**12})
    assert ended.code == 1
    assert line(ended, "memory").startswith("fail")
    assert line(ended, "room").startswith("fail")


def test_without_a_spec_only_the_machine_is_looked_at(hub: Hub) -> None:
    ended = run("doctor", "--no-ray")
    assert ended.code == 0
    assert [found[6:].split()[0] for found in ended.out.splitlines()] == ["device", "scratch", "token"]
    assert not hub.asked


@pytest.mark.slow
def test_ray_starts(hub: Hub) -> None:
    assert line(run("doctor"), "ray").startswith("ok")
