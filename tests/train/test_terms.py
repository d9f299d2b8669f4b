"""What a model may be used for follows from what taught it: bases, encoders, built sets, real tiles."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("synthetic", [True, False])
def test_terms_and_domain_follow_what_taught(tmp_path: Path, base: Path, synthetic: bool) -> None:
    """Real tiles make what was open local, and no longer what the base drew, unless their holder says otherwise."""
    values = json.loads((base / "config.json").read_text())
    values |= {"licence": {"name": "Apache-2.0", "sharing": "allowed"}, "domain": "invented tissue"}
    (base / "config.json").write_text(json.dumps(values))
    write_tar(tmp_path / "tars" / "0.tar", range(12), lambda n: {**plain(n), "synthetic": synthetic}, lambda n: SIDE)
    train(load_config(config(tmp_path, base)), tmp_path / "run", tmp_path / "cache")
    out = open_model(str(export(tmp_path / "run", tmp_path / "one", model_id="m", revision="1")))
    assert (out.licence["sharing"], out.config.get("domain")) == (
        ("allowed", "invented tissue") if synthetic else ("local", None)
    )
    mine = {"name": "MIT", "sharing": "allowed"}
    out = open_model(
        str(export(tmp_path / "run", tmp_path / "two", model_id="m", revision="1", licence=mine, domain="skin"))
    )
    assert (out.licence, out.config["domain"]) == (mine, "skin")


def test_a_set_that_may_not_be_shared_binds_the_model_that_learns_from_it(tmp_path: Path, base: Path) -> None:
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
    train(
        load_config(config(tmp_path, base, data={"shards": str(tmp_path / "out")})),
        tmp_path / "run",
        tmp_path / "cache",
    )
    with pytest.raises(InputError, match=r"set closed is under CC-BY-NC-ND-4\.0, sharing local, which binds"):
        export(
            tmp_path / "run", tmp_path / "x", model_id="m", revision="1", licence={"name": "MIT", "sharing": "allowed"}
        )
    assert not (tmp_path / "x").exists()
    assert open_model(str(export(tmp_path / "run", tmp_path / "y", model_id="m", revision="1"))).licence == {
        "name": "Apache-2.0", "sharing": "local",
    }  # fmt: skip


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
