"""What a model may be used for follows from what taught it: bases, encoders, built sets, real tiles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_making import SIDE, config, encoder_run, make_base
from running import run
from tinymodel import make_bank_file
from training import plain, write_tar, write_yaml

from synthfactory.model.folder import open_model
from synthfactory.spec.errors import InputError
from train.config import load_config
from train.export import export
from train.loop import train


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path)


def test_terms_that_allow_no_sharing_stay(tmp_path: Path, base: Path) -> None:
    values = json.loads((base / "config.json").read_text())
    values["licence"] = {"name": "CC-BY-NC-ND-4.0", "sharing": "local"}
    (base / "config.json").write_text(json.dumps(values))
    train(load_config(config(tmp_path, base)), tmp_path / "run", tmp_path / "cache")
    with pytest.raises(InputError, match=r"under CC-BY-NC-ND-4\.0, whose terms stay"):
        export(
            tmp_path / "run", tmp_path / "x", model_id="m", revision="1", licence={"name": "MIT", "sharing": "allowed"}
        )
    assert not (tmp_path / "x").exists()
    out = export(tmp_path / "run", tmp_path / "tuned", model_id="m", revision="1")
    assert open_model(str(out)).licence["sharing"] == "local"
    (base / "config.json").write_text(json.dumps({**values, "id": "other"}))
    with pytest.raises(InputError, match="is another model than the run went on from"):
        export(tmp_path / "run", tmp_path / "y", model_id="m", revision="1")


WENT_ON = "; it went on from tiny 1, which draws invented tissue"


@pytest.mark.parametrize("synthetic", [True, False])
def test_terms_and_domain_follow_what_taught(tmp_path: Path, base: Path, synthetic: bool) -> None:
    """Real tiles make what was open local, and no longer what the base drew, unless their holder says otherwise; the base stays named."""
    values = json.loads((base / "config.json").read_text())
    values |= {"licence": {"name": "Apache-2.0", "sharing": "allowed"}, "domain": "invented tissue"}
    (base / "config.json").write_text(json.dumps(values))
    write_tar(tmp_path / "tars" / "0.tar", range(12), lambda n: {**plain(n), "synthetic": synthetic}, lambda n: SIDE)
    train(load_config(config(tmp_path, base)), tmp_path / "run", tmp_path / "cache")
    out = open_model(str(export(tmp_path / "run", tmp_path / "one", model_id="m", revision="1")))
    assert (out.licence["sharing"], out.config.get("domain")) == (
        ("allowed", "invented tissue") if synthetic else ("local", f"what its tiles show{WENT_ON}")
    )
    mine = {"name": "MIT", "sharing": "allowed"}
    out = open_model(
        str(export(tmp_path / "run", tmp_path / "two", model_id="m", revision="1", licence=mine, domain="skin"))
    )
    assert (out.licence, out.config["domain"]) == (mine, f"skin{WENT_ON}")
    train(load_config(config(tmp_path, tmp_path / "two")), tmp_path / "again", tmp_path / "cache")
    out = open_model(str(export(tmp_path / "again", tmp_path / "three", model_id="m", revision="2", domain="liver")))
    assert out.config["domain"] == f"liver{WENT_ON}", "what its line began with, and not a sentence longer for each"


@pytest.fixture
def closed(tmp_path: Path, base: Path) -> Path:
    """A set built under terms that allow no sharing; the base itself is open."""
    bank = make_bank_file(tmp_path / "bank.parquet", base, classes={"one": 3})
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**values, "licence": {"name": "CC-BY-NC-ND-4.0", "sharing": "local"}})
    )
    spec = {
        "name": "closed", "model": str(base), "classes": {"one": 8}, "embeddings": {"bank": str(bank)}, "seed": 1,
        "sampler": {"steps": 1}, "output": {"path": str(tmp_path / "out")}, "lineage": str(tmp_path / "lineage"),
    }  # fmt: skip
    assert run("build", write_yaml(tmp_path / "spec.yaml", spec), "--local").code == 0
    (base / "config.json").write_text(json.dumps({**values, "licence": {"name": "Apache-2.0", "sharing": "allowed"}}))
    return tmp_path / "out"


MINE = {"name": "MIT", "sharing": "allowed"}


@pytest.mark.parametrize("named", ["", "/shards", "/shards/*.tar", "copied"])
def test_a_set_that_may_not_be_shared_binds_the_model_that_learns_from_it(
    tmp_path: Path, base: Path, closed: Path, named: str
) -> None:
    """Whatever it is named by: the set, its folder of tars, a pattern, or a copy of a tar, which speaks for itself."""
    shards = f"{closed}{named}"
    if named == "copied":
        (tmp_path / "copied").mkdir()
        shards = str(shutil.copy(next((closed / "shards").glob("*.tar")), tmp_path / "copied/one.tar"))
    train(load_config(config(tmp_path, base, data={"shards": shards})), tmp_path / "run", tmp_path / "cache")
    who = "synthetic tiles are" if named == "copied" else "set closed is"
    with pytest.raises(InputError, match=rf"data\.shards: {who} under CC-BY-NC-ND-4\.0, sharing local, which binds"):
        export(tmp_path / "run", tmp_path / "x", model_id="m", revision="1", licence=MINE)
    assert not (tmp_path / "x").exists()
    out = open_model(str(export(tmp_path / "run", tmp_path / "y", model_id="m", revision="1")))
    on_top = {} if named == "copied" else {"real_tiles": "behind closed: their terms come on top"}
    assert out.licence == {"name": "Apache-2.0", "sharing": "local", **on_top}
    assert [each["name"] for each in out.config["training"].get("sets", [])] == (
        [] if named == "copied" else ["closed"]
    )


@pytest.mark.parametrize("invented", [False, True])
def test_real_tiles_behind_an_open_set_make_an_export_local_unless_their_holder_says_otherwise(
    tmp_path: Path, base: Path, invented: bool
) -> None:
    name = "phantom-gland" if invented else "one"
    bank = make_bank_file(tmp_path / "bank.parquet", base, classes={name: 3})
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**values, "licence": {"name": "Apache-2.0", "sharing": "allowed"}}))
    spec = {
        "name": "opened", "model": str(base), "classes": {name: 8}, "embeddings": {"bank": str(bank)}, "seed": 1,
        "sampler": {"steps": 1}, "output": {"path": str(tmp_path / "out")}, "lineage": str(tmp_path / "lineage"),
    }  # fmt: skip
    assert run("build", write_yaml(tmp_path / "spec.yaml", spec), "--local").code == 0
    train(
        load_config(config(tmp_path, base, data={"shards": str(tmp_path / "out")})),
        tmp_path / "run",
        tmp_path / "cache",
    )
    out = open_model(str(export(tmp_path / "run", tmp_path / "one", model_id="m", revision="1")))
    assert out.licence["sharing"] == ("allowed" if invented else "local")
    assert out.licence.get("real_tiles") == (None if invented else "behind opened: their terms come on top")
    out = open_model(str(export(tmp_path / "run", tmp_path / "two", model_id="m", revision="1", licence=MINE)))
    assert out.licence == MINE


def test_real_tiles_that_taught_the_encoder_make_an_export_local(tmp_path: Path, base: Path, closed: Path) -> None:
    """Its weights are in the export, whatever the rest learnt from."""
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**values, "domain": "invented tissue"}))
    learned = str(encoder_run(tmp_path))
    write_tar(tmp_path / "tars" / "0.tar", range(12), lambda n: {**plain(n), "synthetic": True}, lambda n: SIDE)
    for taught_by, sharing in ((learned, "local"), (None, "allowed")):
        name = "with" if taught_by else "without"
        train(load_config(config(tmp_path, base, encoder_run=taught_by)), tmp_path / name, tmp_path / "cache")
        out = open_model(str(export(tmp_path / name, tmp_path / f"{name}-out", model_id="m", revision="1")))
        assert (out.licence["sharing"], out.config.get("domain")) == (
            sharing, f"what its tiles show{WENT_ON}" if taught_by else "invented tissue"
        )  # fmt: skip


def test_a_closed_set_that_taught_the_encoder_binds_as_well(tmp_path: Path, base: Path, closed: Path) -> None:
    learned = encoder_run(tmp_path)
    noted = json.loads((learned / "extra.json").read_text())
    (learned / "extra.json").write_text(
        json.dumps({**noted, "sets": [{"name": "closed", "recipe_sha256": "0", "licence": "CC", "sharing": "local"}]})
    )
    train(load_config(config(tmp_path, base, encoder_run=str(learned))), tmp_path / "run", tmp_path / "cache")
    with pytest.raises(InputError, match=r"encoder_run: set closed is under CC, sharing local"):
        export(tmp_path / "run", tmp_path / "x", model_id="m", revision="1", licence=MINE)
    for damaged in ("{", "[]"):
        (learned / "extra.json").write_text(damaged)
        with pytest.raises(InputError, match=r"extra\.json: is missing or damaged"):
            export(tmp_path / "run", tmp_path / "x", model_id="m", revision="1")


@pytest.mark.parametrize(
    ("licence", "encoder", "kept"),
    [
        ({"name": "CC-BY-4.0", "sharing": "allowed", "gated": True}, "tiny-encoder", "CC-BY-4.0"),
        ({"name": "Apache-2.0", "sharing": "allowed"}, "bioptimus/H0-mini", "Apache-2.0"),
    ],
)
def test_what_rests_on_gated_weights_is_not_shared_whatever_its_licence_says(
    tmp_path: Path, base: Path, licence: dict[str, Any], encoder: str, kept: str
) -> None:
    values = json.loads((base / "config.json").read_text())
    values["licence"] = licence
    values["encoder"]["id"] = encoder
    (base / "config.json").write_text(json.dumps(values))
    train(load_config(config(tmp_path, base)), tmp_path / "run", tmp_path / "cache")
    with pytest.raises(InputError, match=rf"is under {kept}.*, whose terms stay"):
        export(
            tmp_path / "run", tmp_path / "x", model_id="m", revision="1", licence={"name": "MIT", "sharing": "allowed"}
        )
    out = open_model(str(export(tmp_path / "run", tmp_path / "tuned", model_id="m", revision="1")))
    assert (out.licence["name"], out.licence["sharing"]) == (kept, "local")
    if encoder != "tiny-encoder":
        assert out.licence["embeddings"] == "bioptimus/H0-mini: CC-BY-NC-ND-4.0"


def test_an_autoencoder_keeps_the_terms_of_its_bases_encoder_whichever_it_looks_through(
    tmp_path: Path, base: Path
) -> None:
    values = json.loads((base / "config.json").read_text())
    values["encoder"]["id"] = "bioptimus/H0-mini"
    (base / "config.json").write_text(json.dumps(values))
    chosen = config(tmp_path, base, mode="vae", vae={"crop": 16}, encoder_run=str(encoder_run(tmp_path)), samples=None)
    train(load_config(chosen), tmp_path / "run", tmp_path / "cache")
    out = open_model(str(export(tmp_path / "run", tmp_path / "tuned", model_id="m", revision="1")))
    assert (out.licence["sharing"], out.encoder["id"]) == ("local", "bioptimus/H0-mini")
