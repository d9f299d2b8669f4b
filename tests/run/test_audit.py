"""`synthfactory audit`: copies are named, innocent sets are left alone, a control that fails leaves no report, bad input is refused."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import source_making as making
from cli_checks import check_refusal
from running import Ended, run, write_spec
from tinymodel import make_bank_file, make_tiny_model

from synthfactory.evaluate.audit import Drawn, Real
from synthfactory.evaluate.planted import TUNING, plant
from synthfactory.run import auditing
from synthfactory.run.audit_tiles import DrawnTiles, Source, embedded
from synthfactory.run.auditing import Audit, UnfitError
from synthfactory.spec.errors import InputError

SIDE, PATIENTS, TILES = 64, 52, 8
COLOURS = np.random.default_rng(0).standard_normal((3 * 64, 24)).astype(np.float32)


def embed(images: np.ndarray) -> np.ndarray:
    """Stands for an encoder: mean colours of an 8 x 8 grid, mixed."""
    grid = images.reshape(len(images), 8, SIDE // 8, 8, SIDE // 8, 3).mean(axis=(2, 4)) / 255
    return np.asarray(grid.reshape(len(images), -1) @ COLOURS, np.float32)


def tissue(random: np.random.Generator, dark: float) -> np.ndarray:
    """Nuclei on stroma: dark spots of random place and size."""
    at, (cy, cx, size) = np.arange(SIDE), random.uniform([0, 0, 2], [SIDE, SIDE, 3.5], (90, 3)).T
    down, across = (np.exp(-(((at - centre[:, None]) / size[:, None]) ** 2)) for centre in (cy, cx))
    light = 225.0 - dark * (down.T @ across)
    light = np.clip(light + random.normal(0, 4, light.shape), 0, 255)[..., None]
    return np.asarray(light * np.array([1.0, 0.75, 0.95]), np.uint8)


def source(seed: int, prefix: str, tint: float = 1.0) -> tuple[Source, list[np.ndarray]]:
    random = np.random.default_rng(seed)
    darks = np.repeat(random.uniform(80, 150, PATIENTS), TILES)
    tiles = [(tissue(random, dark) * np.array([1, tint, 1])).astype(np.uint8) for dark in darks]
    return made_source(prefix, tiles), tiles


def made_source(prefix: str, tiles: list[np.ndarray]) -> Source:
    vectors, prints = embedded(iter(tiles), embed, SIDE)
    patients = np.repeat([f"{prefix}{n}" for n in range(PATIENTS)], TILES)
    classes = np.repeat(np.array(["alpha", "beta"])[(np.arange(PATIENTS) < 40).astype(int)], TILES)
    return Source(prefix, Real(vectors, patients, classes), tiles.__getitem__, prints, "tile {}".format)


def a_set(tiles: list[np.ndarray], classes: list[str]) -> DrawnTiles:
    vectors, prints = embedded(iter(tiles), embed, SIDE)
    keys = [f"t-{n:03d}" for n in range(len(tiles))]
    return DrawnTiles(Drawn(vectors, np.array(classes)), keys, lambda: iter(tiles), prints)


@pytest.fixture(scope="module")
def members() -> tuple[Source, list[np.ndarray]]:
    return source(1, "m")


@pytest.fixture(scope="module")
def holdout() -> tuple[Source, list[np.ndarray]]:
    return source(2, "h")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "PLANTS", 96)
    monkeypatch.setattr(auditing, "SHORTLIST", 2)


def innocents(count: int = 32) -> tuple[list[np.ndarray], list[str]]:
    random = np.random.default_rng(9)
    return [tissue(random, 110) for _ in range(count)], ["alpha", "beta"] * (count // 2)


@pytest.mark.usefixtures("quick")
def test_copies_in_a_set_are_named_and_an_innocent_rest_is_not(members: Any, holdout: Any) -> None:
    (known, tiles), random = members, np.random.default_rng(5)
    drawn, classes = innocents()
    copied = {3: 17, 8: 200, 20: 333, 31: 400}  # place in the set -> member
    for at, (place, row) in enumerate(copied.items()):
        names = ("turned", "compressed") if at % 2 else ("mirrored", "blended")
        drawn[place] = plant(tiles[row], tiles[row - 9], TUNING, names, random)
        classes[place] = str(known.real.classes[row])
    audit = Audit(a_set(drawn, classes), known, holdout[0], embed, SIDE)
    assert audit.pixels
    found = audit.run()
    assert found["controls"]["planted copies"]["found"] >= 0.95
    assert found["controls"]["innocent set"]["passed"]
    assert {(each["tile"], each["member"]) for each in found["copies"]["most_alike"]} == {
        (f"t-{place:03d}", f"tile {row}") for place, row in copied.items()
    }
    assert found["copies"]["rate"]["value"] == pytest.approx(4 / 32)
    assert found["copies"]["threshold"]["false_alarms"]["value"] <= 0.02
    low, high = found["nearer_to_members"]["interval_999"]
    assert low < found["nearer_to_members"]["value"] < high
    assert found["membership"]["max cosine"]["auc"]["interval_999"][0] < 0.5, "four of 416 tiles give no patient away"


@pytest.mark.usefixtures("quick")
def test_where_the_holdout_is_of_another_kind_or_holds_copies_there_is_no_report(members: Any, holdout: Any) -> None:
    known, tiles = members
    drawn = a_set(*innocents())
    sides = [
        Source(each.place, each.real) for each in (known, source(2, "h", tint=0.8)[0])
    ]  # embeddings alone: quicker
    with pytest.raises(UnfitError, match="innocent set: a set without members tells them") as failed:
        Audit(drawn, sides[0], sides[1], embed, SIDE).run()
    assert failed.value.controls["innocent set"]["passed"] is False
    mixed = [tile if number % 20 else tiles[number][:, ::-1] for number, tile in enumerate(holdout[1])]
    with pytest.raises(UnfitError, match=r"planted copies: of 96 planted copies .* are found; 98% are needed"):
        Audit(drawn, known, made_source("h", mixed), embed, SIDE).run()


def test_members_and_holdout_must_be_other_patients_and_tiles(members: Any, holdout: Any) -> None:
    drawn = a_set(*innocents())
    with pytest.raises(InputError, match="52 of its patients stand in m too, such as 'm0'"):
        Audit(drawn, members[0], members[0], embed, SIDE)
    spelt = np.array([f" {str(name).upper()}" for name in members[0].real.patients])
    with pytest.raises(InputError, match="52 of its patients stand in m too"):
        Audit(
            drawn,
            members[0],
            Source("h", Real(members[0].real.embeddings[::-1], spelt, members[0].real.classes)),
            embed,
            SIDE,
        )
    renamed = Source("other", Real(members[0].real.embeddings, holdout[0].real.patients, holdout[0].real.classes))
    with pytest.raises(InputError, match="416 of its tiles have the embedding of one in m"):
        Audit(drawn, members[0], renamed, embed, SIDE)
    with pytest.raises(InputError, match="no class of the set"):
        Audit(a_set(innocents()[0], ["gamma"] * 32), members[0], holdout[0], embed, SIDE)


# The command, on a set of the tiny model: 32 px are too few for the pixel check, so copies are looked for by distance.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, members.parquet and holdout.parquet (other patients) and a set in out."""
    folder = tmp_path_factory.mktemp("audited")
    make_tiny_model(folder / "model")
    for name, seed in (("members", 1), ("holdout", 2)):
        path = make_bank_file(folder / f"{name}.parquet", folder / "model", {"alpha": 100, "beta": 40}, seed)
        if name == "holdout":
            renamed(path, path)
    spec = write_spec(
        folder / "spec.yaml",
        model=str(folder / "model"),
        embeddings={"bank": str(folder / "members.parquet")},
        classes={"alpha": 24, "beta": 12},
    )
    assert run("build", spec, "--local").code == 0
    return folder


def changed(path: Path, target: Path, change: Callable[[dict[str, list[Any]]], None]) -> Path:
    table = pq.read_table(path)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), target)
    return target


def renamed(path: Path, target: Path) -> Path:
    """The same bank under other patients."""
    return changed(
        path, target, lambda columns: columns.update(patient_id=["H" + name for name in columns["patient_id"]])
    )


@pytest.fixture
def here(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return built


def audit(folder: Path, *more: object, out: Path | None = None, **places: Path) -> Ended:
    given = {"members": folder / "members.parquet", "holdout": folder / "holdout.parquet", **places}
    model = () if "--encoder" in more or "--model" in more else ("--model", folder / "model")
    return run(
        "audit", out or folder / "out", "--members", given["members"], "--holdout", given["holdout"], *model, *more
    )


def test_the_command_writes_a_report_for_its_owner_alone_and_prints_a_table(here: Path) -> None:
    ended = audit(here, "--mechanism", "dp", "--epsilon", 4, "--delta", 1e-6)
    assert ended.code == 0, ended.err
    report = Path("audit.json")
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    found = json.loads(report.read_text())
    assert max(map(len, ended.out.splitlines())) <= 80
    assert found["set"]["tiles"] == 36
    assert "is not covered by any epsilon: never published" in found["internal"]
    assert found["members"] | {"place": ""} == {
        "place": "",
        "tiles": 420,
        "patients": 140,
        "pixels": False,
        "of_the_set": None,
    }
    assert "members of whom no tile was drawn" in " ".join(found["not_measured"])
    most = found["epsilon"]["most_999"]
    assert 1.5 < most < 3
    assert f"could show at most {most:.3f}: too few to test what is stated" in ended.out
    assert found["encoder"]["independent"] is False
    assert "not independent" in ended.out.replace("\n  ", " ")
    assert {name: each["passed"] for name, each in found["controls"].items()} == {
        "innocent set": True, "planted copies": True,
    }  # fmt: skip
    assert found["membership"].keys() == {"max cosine", "density ratio", "calibrated", "whitened"}
    for attack in found["membership"].values():
        low, high = attack["auc"]["interval_999"]
        assert low < attack["auc"]["value"] < high
        assert [hit["why"][:31] for hit in attack["tpr"]] == [
            "not measurable with n = 140; 1,",
            "not measurable with n = 140; 10",
        ]
    assert found["epsilon"]["at_least_999"] == 0.0
    assert found["epsilon"]["contradicts_what_is_stated"] is False
    assert "pixel check of copies" in " ".join(found["not_measured"])
    whole = (ended.out + report.read_text()).lower()
    assert "proves nothing" in whole
    assert "private" not in whole
    beta = next(at for at, line in enumerate(ended.out.splitlines()) if line.startswith("beta"))
    alpha = next(at for at, line in enumerate(ended.out.splitlines()) if line.startswith("alpha"))
    assert beta < alpha, "the rarest class stands first"


def test_with_the_lineage_members_are_those_that_tiles_rest_on(here: Path, tmp_path: Path) -> None:
    ended = audit(here, "--lineage", here / "lineage")
    assert ended.code == 0, ended.err
    found = json.loads(Path("audit.json").read_text())
    rows = [row for unit in (here / "lineage/units").glob("*.parquet") for row in pq.read_table(unit).to_pylist()]
    behind = {(row["class_name"], part["patient_id"]) for row in rows if row["accepted"] for part in row["sources"]}
    patients = {name for _, name in behind}
    assert found["members"]["of_the_set"] == {"patients": len(patients), "found": len(patients)}
    assert found["members"]["patients"] == len(patients) < 140
    bank = pq.read_table(here / "members.parquet").to_pylist()
    assert found["members"]["tiles"] == sum((row["label"], row["patient_id"]) in behind for row in bank)
    assert "members of whom no tile was drawn" not in " ".join(found["not_measured"])
    assert f"of the {len(patients)} patients behind the set {len(patients)} were found" in ended.out.replace(
        "\n  ", " "
    )
    wrong = audit(
        here, "--lineage", here / "lineage", members=here / "holdout.parquet", holdout=here / "members.parquet"
    )
    assert wrong.code == 2
    assert f"has none of the {len(patients)} patients that the set rests on" in wrong.err


def test_patients_behind_the_set_are_no_holdout_and_those_left_out_are_counted(here: Path, tmp_path: Path) -> None:
    """Members on both sides would look like nobody's."""
    rows = [row for unit in (here / "lineage/units").glob("*.parquet") for row in pq.read_table(unit).to_pylist()]
    behind = {part["patient_id"] for row in rows if row["accepted"] for part in row["sources"]}
    table = pq.read_table(here / "members.parquet")
    kept = set(sorted(behind)[:-3])
    some = table.filter(pc.invert(pc.is_in(table["patient_id"], pa.array(sorted(behind - kept)))))
    pq.write_table(some, tmp_path / "some.parquet")
    others = pa.concat_tables(
        [
            pq.read_table(here / "holdout.parquet"),
            table.filter(pc.is_in(table["patient_id"], pa.array(sorted(behind - kept)))),
        ]
    )
    pq.write_table(others, tmp_path / "others.parquet")
    refused = audit(
        here, "--lineage", here / "lineage", members=tmp_path / "some.parquet", holdout=tmp_path / "others.parquet"
    )
    assert refused.code == 2
    assert "tiles of the set rest on 3 of its patients" in " ".join(refused.err.split())
    ended = audit(here, "--lineage", here / "lineage", members=tmp_path / "some.parquet")
    assert ended.code == 0, ended.err
    found = json.loads(Path("audit.json").read_text())
    assert found["members"]["of_the_set"] == {"patients": len(behind), "found": len(behind) - 3}
    assert "3 patients behind the set of whom --members has no tile" in found["not_measured"]


def test_an_audit_of_a_set_with_bags_says_that_it_does_not_use_them(here: Path, tmp_path: Path) -> None:
    given = {"model": str(here / "model"), "embeddings": {"bank": str(here / "members.parquet")}}
    spec = write_spec(
        tmp_path / "spec.yaml", classes={"alpha": 24, "beta": 12}, bags={"size": 4, "patients": 2}, **given
    )
    assert run("build", spec, "--local").code == 0
    ended = audit(here, out=tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "attacks that use which tiles share a bag" in json.loads(Path("audit.json").read_text())["not_measured"]


def test_a_failed_control_is_printed_and_nothing_written(here: Path, tmp_path: Path) -> None:
    def off(columns: dict[str, list[Any]]) -> None:
        columns["embedding"] = [[value + 2.0 for value in row] for row in columns["embedding"]]

    ended = audit(here, holdout=changed(here / "holdout.parquet", tmp_path / "off.parquet", off))
    assert ended.code == 3
    assert "control, innocent set:    FAILED" in ended.out
    assert "take members and holdout from the same sites" in ended.err
    assert not Path("audit.json").exists()


def test_few_patients_give_reasons_in_place_of_figures(here: Path, tmp_path: Path) -> None:
    few = {"alpha": 6, "beta": 3}
    members = make_bank_file(tmp_path / "few.parquet", here / "model", few, 5)
    other = make_bank_file(tmp_path / "other.parquet", here / "model", few, 6)
    ended = audit(here, members=members, holdout=renamed(other, tmp_path / "h.parquet"))
    assert ended.code == 0, ended.err
    found = json.loads(Path("audit.json").read_text())
    assert {each["passed"] for each in found["controls"].values()} == {None}
    assert found["copies"]["rate"]["why"].startswith("not measurable with n = 27 holdout tiles")
    assert found["membership"]["value"] is None
    assert "not measurable with n = 4 patients a side" in found["membership"]["why"]
    assert ended.out.count("not run") == 2


def test_what_cannot_be_audited_is_refused(here: Path, tmp_path: Path) -> None:
    def nan(columns: dict[str, list[Any]]) -> None:
        columns["embedding"][3] = [float("nan")] * 16

    def nobody(columns: dict[str, list[Any]]) -> None:
        columns["patient_id"][5] = None

    bank, model = here / "holdout.parquet", here / "model"
    make_tiny_model(tmp_path / "another", seed=4)
    (tmp_path / "empty").mkdir()
    shutil.copytree(here / "out", tmp_path / "begun")
    shutil.rmtree(tmp_path / "begun" / "commits")
    shutil.copytree(here / "out", tmp_path / "damaged")
    next((tmp_path / "damaged" / "shards").glob("*.tar")).write_bytes(b"no tar")
    making.write_tiles(tmp_path / "tiles")
    refusals = [
        (audit(here, out=tmp_path / "empty"), "holds no set (no spec.lock.yaml)"),
        (audit(here, out=tmp_path / "begun"), "holds no tile yet; build it first"),
        (audit(here, out=tmp_path / "damaged"), "`synthfactory verify"),
        (audit(here, holdout=here / "members.parquet"), "of its patients stand in"),
        (
            audit(here, holdout=renamed(here / "members.parquet", tmp_path / "same.parquet")),
            "tiles have the embedding of one in",
        ),
        (audit(here, holdout=changed(bank, tmp_path / "nan.parquet", nan)), "1 embeddings hold NaN or infinity"),
        (audit(here, holdout=changed(bank, tmp_path / "who.parquet", nobody)), "1 of 420 tiles have no patient_id"),
        (audit(here, "--encoder", tmp_path / "another"), "was made with encoder tiny-encoder"),
        (audit(here, "--model", tmp_path / "another"), "is not the model of"),
        (audit(here, "--encoder", model, "--model", model), "leave one of them out"),
        (audit(here, "--encoder", "phantom"), "takes 224 px, but tiles of"),
        (audit(here, members=tmp_path / "nowhere"), "no such file or folder"),
        (audit(here, members=tmp_path / "tiles"), "patients must be known"),
        (audit(here, "--report", here / "out" / "audit.json"), "lies in the set, and the report is internal"),
        (audit(here, "--report", "audit.txt"), "is no local JSON file"),
        (audit(here, "--epsilon", 3), "go with --mechanism dp"),
        (audit(here, "--mechanism", "dp", "--epsilon", 3), "needs --epsilon and --delta"),
        (run("audit", here / "out", "--members", bank, "--holdout", bank), "give its folder with --model"),
    ]
    for ended, words in refusals:
        check_refusal(ended, words)
    assert not Path("audit.json").exists()
