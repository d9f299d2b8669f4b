"""A build from spec to shards, in this process: counts, labels, readers, growth, refusals, repairs, what is published."""

from __future__ import annotations

import getpass
import io
import json
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from running import contents, run

from synthfactory.embeddings.parquet import load_bank
from synthfactory.run.keys import SECRET
from synthfactory.shards.reader import iter_tiles

MakeSpec = Callable[..., Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_build_makes_exactly_what_was_asked_for(spec_file: MakeSpec, out: Path) -> None:
    ended = run("build", spec_file(), "--local")
    assert ended.code == 0, ended.err
    assert "33 of 33 tiles in 4 shards" in ended.out
    tiles = list(iter_tiles(str(out)))
    assert Counter(record["label"] for _, _, record in tiles) == {"alpha": 20, "beta": 13}
    assert len({key for key, _, _ in tiles}) == 33
    assert all(image.shape == (32, 32, 3) for _, image, _ in tiles)
    assert len({image.tobytes() for _, image, _ in tiles}) == 33
    assert run("verify", out).code == 0
    assert run("status", out).code == 0
    said = json.loads(run("status", out, "--json").out)
    assert said["classes"]["beta"] == {"tiles": 13, "asked": 13, "shortfall": 0}
    assert said["complete"]


def test_other_peoples_readers_open_it(spec_file: MakeSpec, out: Path) -> None:
    run("build", spec_file(), "--local")
    shards = [str(out / line) for line in (out / "shards.txt").read_text().split()]
    plain = Counter[str]()
    for shard in shards:
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            assert [m.mtime for m in members] == [0] * len(members)
            for png, record in zip(members[::2], members[1::2], strict=True):
                values = json.load(tar.extractfile(record))  # type: ignore[arg-type]
                assert (png.name, record.name) == (f"{values['key']}.png", f"{values['key']}.json")
                Image.open(io.BytesIO(tar.extractfile(png).read())).load()  # type: ignore[union-attr]
                plain[values["label"]] += 1
    streamed = webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("png", "json")
    counted = Counter(record["label"] for image, record in streamed if image.shape == (32, 32, 3))
    assert plain == counted == {"alpha": 20, "beta": 13}


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_opens_it(spec_file: MakeSpec, out: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    run("build", spec_file(), "--local")
    found = datasets.load_dataset(
        "webdataset", data_files=str(out / "shards/*.tar"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert Counter(row["json"]["label"] for row in found) == {"alpha": 20, "beta": 13}
    assert found[0]["png"].size == (32, 32)


def test_the_same_command_again_draws_nothing(spec_file: MakeSpec, out: Path) -> None:
    spec = spec_file()
    run("build", spec, "--local")
    before = contents(out)
    ended = run("build", spec, "--local")
    assert ended.code == 0
    assert "nothing to draw" in ended.err
    assert contents(out) == before


def test_growing_keeps_every_earlier_object(spec_file: MakeSpec, out: Path, tmp_path: Path) -> None:
    run("build", spec_file(), "--local")
    before = contents(out)
    ended = run("build", spec_file(classes={"alpha": 20, "beta": 21}), "--local")
    assert ended.code == 0
    assert "8 tiles in 1 shard to draw" in ended.err
    after = contents(out)
    kept = {path for path in before if path.startswith(("shards/", "commits/", "rounds/"))}
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    assert Counter(record["label"] for _, _, record in iter_tiles(str(out))) == {"alpha": 20, "beta": 21}
    # A tile of a class does not depend on when it was made: grown in two steps or built at once, slot 20 is the same.
    at_once = spec_file(
        classes={"alpha": 20, "beta": 21},
        output={"path": str(tmp_path / "o2"), "shard_size": 8},
        lineage=f"{tmp_path}/l2",
    )
    run("build", at_once, "--local")
    grown = {key: image.astype(int) for key, image, _ in iter_tiles(str(out))}
    for key, image, _ in iter_tiles(str(tmp_path / "o2")):
        assert np.abs(grown[key] - image).max() <= 1  # other batches, so the last bits may differ


def test_a_class_can_join_later(spec_file: MakeSpec, out: Path) -> None:
    run("build", spec_file(classes={"alpha": 9}), "--local")
    assert run("build", spec_file(classes={"alpha": 9, "beta": 5}), "--local").code == 0
    rows = {(record["label"], record["class_index"]) for _, _, record in iter_tiles(str(out))}
    assert rows == {("alpha", 0), ("beta", 1)}
    assert run("verify", out).code == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sampler": {"steps": 4}}, "sampler.steps: was 3, now 4"),
        ({"seed": 6}, "the seed they are fingerprinted with"),
        ({"screen": {"blur": {}}}, "screen.blur"),
        ({"output": {"path": "OUT", "shard_size": 8, "format": "webp"}}, "format"),
        ({"classes": {"alpha": {"count": 20, "sampler": {"steps": 9}}, "beta": 13}}, "classes.alpha.sampler"),
        ({"classes": {"alpha": 19, "beta": 13}}, "a set only grows"),
        ({"execution": {"batch_size": 4}}, "execution.batch_size"),
        ({"name": "other"}, "name"),
    ],
)
def test_another_recipe_is_refused_and_nothing_changes(
    spec_file: MakeSpec, out: Path, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    run("build", spec_file(), "--local")
    before = contents(tmp_path / "lineage"), contents(out)
    if "output" in change:
        change = {"output": {**change["output"], "path": str(out)}}  # type: ignore[dict-item]
    ended = run("build", spec_file(**change), "--local")
    assert ended.code == 2
    assert named in ended.err
    assert "Traceback" not in ended.err
    assert (contents(tmp_path / "lineage"), contents(out)) == before


def test_a_folder_that_is_no_set_is_never_written_into(spec_file: MakeSpec, out: Path) -> None:
    out.mkdir()
    (out / "thesis.docx").write_text("mine")
    ended = run("build", spec_file(), "--local")
    assert ended.code == 2
    assert "thesis.docx" in ended.err
    assert [path.name for path in out.iterdir()] == ["thesis.docx"]


def test_every_damage_is_found_and_mended_to_the_same_bytes(spec_file: MakeSpec, out: Path) -> None:
    spec = spec_file()
    run("build", spec, "--local")
    whole = contents(out)
    tars = sorted((out / "shards").glob("*.tar"))
    flipped = bytearray(tars[0].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    tars[0].write_bytes(flipped)
    tars[1].write_bytes(tars[1].read_bytes()[:700])
    (out / "commits/000002.json").unlink()
    (out / "notes.txt").write_text("mine")
    (out / "dataset.json").write_text("{}")
    found = run("verify", out)
    assert found.code == 1
    for name in (tars[0].name, tars[1].name, "commits/000002.json", "notes.txt", "dataset.json"):
        assert name in found.out
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    assert contents(out) == whole
    assert run("verify", out).code == 0
    assert contents(out.parent / "lineage")["foreign/notes.txt"] == b"mine"


def test_a_screen_that_drops_everything_ends_as_a_recorded_shortfall(spec_file: MakeSpec, out: Path) -> None:
    spec = spec_file(screen={"blur": {"min_sharpness": 9.0}}, budget={"max_attempts": 2}, classes={"alpha": 5})
    ended = run("build", spec, "--local")
    assert ended.code == 3
    assert "0 of 5 tiles" in ended.out
    assert "10 blurred" in ended.out
    assert "5 tiles found no candidate" in ended.out
    assert run("status", out).code == 3
    assert json.loads(run("status", out, "--json").out) == {
        "complete": False, "tiles": 0, "asked": 5, "shards": 1, "shards_asked": 1,
        "classes": {"alpha": {"tiles": 0, "asked": 5, "shortfall": 5}},
    }  # fmt: skip
    assert run("verify", out).code == 0
    rows = [row for path in (out.parent / "lineage/units").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert [(row["accepted"], row["reasons"]) for row in rows] == [(False, ["blurred"])] * 10
    assert len({row["noise_key"] for row in rows}) == 10


def test_a_class_may_have_more_attempts_than_the_others(spec_file: MakeSpec, out: Path) -> None:
    classes = {"alpha": 5, "beta": {"count": 3, "budget": {"max_attempts": 4}}}
    budget = {"max_attempts": 2, "network_calls": 220}  # just enough
    spec = spec_file(screen={"blur": {"min_sharpness": 9.0}}, budget=budget, classes=classes)
    assert "80 without rejects, at most 220" in run("plan", spec).out  # 10 calls a tile: 5 x 2 and 3 x 4 draws
    assert run("build", spec, "--local").code == 3
    rows = [row for path in (out.parent / "lineage/units").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert Counter(row["class_name"] for row in rows) == {"alpha": 10, "beta": 12}
    assert {row["attempt"] for row in rows if row["class_name"] == "beta"} == {0, 1, 2, 3}
    classes["alpha"], classes["beta"] = 6, {"count": 3, "budget": {"max_attempts": 9}}
    assert (
        run(
            "build",
            spec_file(screen={"blur": {"min_sharpness": 9.0}}, budget={"max_attempts": 2}, classes=classes),
            "--local",
        ).code
        == 3
    ), "other attempts are no other recipe"
    assert run("verify", out).code == 0


def test_rejects_are_redrawn_with_other_noise(spec_file: MakeSpec, tmp_path: Path, out: Path) -> None:
    run("build", spec_file(), "--local")
    from synthfactory.screen import sharpness

    values = sorted(float(sharpness(image[None])[0]) for _, image, _ in iter_tiles(str(out)))
    limit = values[len(values) // 2]
    spec = spec_file(
        screen={"blur": {"min_sharpness": round(limit, 5)}}, budget={"max_attempts": 30},
        output={"path": str(tmp_path / "sharp")}, lineage=str(tmp_path / "sharp-lineage"),
    )  # fmt: skip
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.out
    assert min(float(sharpness(image[None])[0]) for _, image, _ in iter_tiles(str(tmp_path / "sharp"))) >= limit - 1e-5
    rows = [
        row for path in (tmp_path / "sharp-lineage/units").glob("*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    assert sum(row["accepted"] for row in rows) == 33
    assert sum(not row["accepted"] for row in rows) > 5


def _unpacked(store: dict[str, bytes]) -> bytes:
    parts = []
    for path, data in store.items():
        parts += [path.encode(), data]
        if path.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    body = tar.extractfile(member).read()  # type: ignore[union-attr]
                    parts += [repr(member.get_info()).encode(), body]
                    if member.name.endswith(".png"):
                        parts.append(repr(Image.open(io.BytesIO(body)).info).encode())
        if path.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            parts += [repr(table.schema.metadata).encode(), json.dumps(table.to_pylist()).encode()]
    return b"\0".join(parts)


def test_what_may_be_published_holds_no_secret(
    spec_file: MakeSpec, tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = "pathology-host-7.example"  # the real name may be two letters, which any image holds
    monkeypatch.setattr("socket.gethostname", lambda: host)
    monkeypatch.setattr("platform.node", lambda: host)
    seed = 73190284655120937
    run("build", spec_file(seed=seed), "--local")
    published = _unpacked(contents(out))
    bank = load_bank(str(tiny / "bank.parquet"), width=16, encoder=None, classes=["alpha", "beta"])
    lineage = contents(out.parent / "lineage")
    noise = [
        row["noise_key"] for path, data in lineage.items() if path.startswith("units/")
        for row in pq.read_table(io.BytesIO(data)).to_pylist()
    ]  # fmt: skip
    assert len(noise) == 33
    forbidden = [
        str(seed).encode(),
        f"{seed:x}".encode(),
        b"PATIENT-",
        b"SLIDE-",
        host.encode(),
        str(tiny).encode(),
    ]
    forbidden += [key.encode() for key in noise] + [bytes.fromhex(key) for key in noise]
    forbidden += [row.tobytes() for row in bank.embeddings]
    forbidden += [f"{float(value):.5f}"[:-1].encode() for value in bank.embeddings[0] if abs(value) > 1]
    now = time.localtime()
    forbidden += [time.strftime(form, now).encode() for form in ("%Y-%m-%d", "%d %b %Y", "%Y%m%d")]
    forbidden += [str(int(time.time()))[:7].encode()]
    for word in forbidden:
        assert word not in published, word
    user = getpass.getuser().encode()
    assert b"/" + user + b"/" not in published


def test_a_secret_stays_in_lineage_and_is_needed_to_go_on(spec_file: MakeSpec, out: Path) -> None:
    spec = spec_file(seed="secret")
    assert run("build", spec, "--local").code == 0
    secret = (out.parent / "lineage" / SECRET).read_text()
    published = _unpacked(contents(out))
    for key in json.loads(secret).values():
        assert key.encode() not in published
        assert bytes.fromhex(key) not in published
    (out.parent / "lineage" / SECRET).unlink()
    ended = run("build", spec_file(seed="secret", classes={"alpha": 30, "beta": 13}), "--local")
    assert ended.code == 2
    assert "restore the lineage folder" in ended.err
    assert f"{spec}:" in ended.err


def test_two_secrets_draw_other_tiles(spec_file: MakeSpec, tmp_path: Path, out: Path) -> None:
    run("build", spec_file(seed="secret"), "--local")
    run("build", spec_file(seed="secret", output={"path": f"{tmp_path}/o2"}, lineage=f"{tmp_path}/l2"), "--local")
    first = {image.tobytes() for _, image, _ in iter_tiles(str(out))}
    assert first.isdisjoint({image.tobytes() for _, image, _ in iter_tiles(f"{tmp_path}/o2")})


def test_budget_of_network_calls_is_kept_over_runs(spec_file: MakeSpec, out: Path) -> None:
    refused = run("build", spec_file(budget={"network_calls": 100}), "--local")
    assert refused.code == 2
    assert "230 too many" in refused.err  # 33 tiles, Heun with 3 steps: 5 evaluations, guided: 10 calls
    assert not out.exists()


@pytest.mark.parametrize("shard_size", [10, 100])
def test_not_one_network_call_over_the_budget(spec_file: MakeSpec, out: Path, shard_size: int) -> None:
    values = {"screen": {"blur": {"min_sharpness": 9.0}}, "output": {"path": str(out), "shard_size": shard_size}}
    ended = run("build", spec_file(budget={"network_calls": 700, "max_attempts": 9}, **values), "--local")
    assert ended.code == 4
    assert "budget.network_calls leaves too little" in ended.out
    lineage = out.parent / "lineage"
    records = [*lineage.rglob("unit-*.json"), *lineage.rglob("failed-*.json")]
    spent = sum(json.loads(path.read_text())["network_calls"] for path in records)
    assert 330 <= spent <= 700
    again = run("build", spec_file(budget={"network_calls": 700, "max_attempts": 9}, **values), "--local")
    assert again.code == 2
    assert f"beside the {spent} already spent" in " ".join(again.err.split())
    assert run("build", spec_file(budget={"network_calls": 10_000, "max_attempts": 2}, **values), "--local").code == 3
    assert run("verify", out).code == 0


def test_formats_are_what_they_say(spec_file: MakeSpec, tmp_path: Path) -> None:
    tiles = {}
    for form in ("png", "webp", "jpeg"):
        spec = spec_file(
            output={"path": f"{tmp_path}/{form}", "format": form},
            lineage=f"{tmp_path}/{form}-lineage",
            classes={"alpha": 6},
        )
        ended = run("build", spec, "--local")
        assert ended.code == 0
        assert ("jpeg loses detail" in ended.err) == (form == "jpeg")
        tiles[form] = {key: image for key, image, _ in iter_tiles(f"{tmp_path}/{form}")}
    assert all((tiles["png"][key] == tiles["webp"][key]).all() for key in tiles["png"])
    assert any((tiles["png"][key] != tiles["jpeg"][key]).any() for key in tiles["png"])


def test_patients_are_used_in_turn(spec_file: MakeSpec, out: Path) -> None:
    run("build", spec_file(), "--local")
    rows = [row for path in (out.parent / "lineage/units").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert all(len(row["sources"]) == 1 and row["sources"][0]["weight"] == 1 for row in rows)
    behind = [row["sources"][0] for row in rows if row["class_name"] == "alpha"]
    used = Counter(part["patient_id"] for part in behind)
    assert set(used.values()) == {5}  # 20 tiles, 4 patients
    assert all(len({part["bank_row"] for part in behind if part["patient_id"] == patient}) == 3 for patient in used)
