"""Whole builds from repositories of the Hub (a stand-in on loopback): pinned, offline afterwards, never other code than was read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub_making import CYTOSYN, TERMS, Build, official, swapped
from hubserver import GRANTED, Hub, Repo
from miniencoder import WIDTH as ENCODER_WIDTH
from miniencoder import write_published
from minirepo import FORM, make_repo
from PIL import Image
from running import contents, run
from tinymodel import make_bank_file, make_tiny_model

from synthfactory.sample import official as official_engine
from synthfactory.sample.noise import mersenne


def lock_in(tmp_path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((tmp_path / "set/out/spec.lock.yaml").read_text()))


def test_a_gated_pipeline_becomes_a_set_and_its_terms_follow(cytosyn: Repo, build: Build, tmp_path: Path) -> None:
    ended = build(official(cytosyn))
    assert ended.code == 0, ended.err
    lock = lock_in(tmp_path)
    assert (lock["model"]["id"], lock["model"]["revision"]) == (CYTOSYN, cytosyn.refs["main"])
    assert (lock["model"]["backend"], lock["model"]["noise"]) == ("official", "start")
    assert lock["terms"] == {"accepted": ["CC-BY-NC-ND-4.0"], "sharing": "local", "permission": None}
    described = json.loads((tmp_path / "set/out/dataset.json").read_text())
    assert (described["tiles"], described["complete"]) == (9, True)
    assert described["terms"]["sharing"] == "local"
    tar = next((tmp_path / "set/out/shards").glob("*.tar"))
    with tarfile.open(tar) as members:
        record = json.loads(next(members.extractfile(m).read() for m in members if m.name.endswith(".json")))  # type: ignore[union-attr]
    assert record["licence"]["name"] == "CC-BY-NC-ND-4.0"
    assert record["licence"]["sharing"] == "local"
    card = (tmp_path / "set/out/README.md").read_text()
    assert "CC-BY-NC-ND-4.0; local use" in card
    assert "the model repository's own pipeline" in card
    assert run("verify", tmp_path / "set/out").code == 0
    everything = [*contents(tmp_path / "set").values(), ended.out.encode(), ended.err.encode()]
    assert not any(GRANTED.encode() in content for content in everything)


def test_noise_per_candidate_makes_pixels_free_of_the_batch(
    hub: Hub, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a pipeline takes it: batches of 4 and of 8 give the same tiles. Where it takes none, the card says what follows."""
    pixels: dict[tuple[str, int], list[bytes]] = {}
    for noise in ("latents", "generator", "neither"):
        repo = hub.add(f"someone/{noise}")
        repo.commit(make_repo(noise))
        for batch in (4, 8):
            model = {**official(repo), "name": f"hf://someone/{noise}"}
            place = {"path": str(tmp_path / f"set/{noise}-{batch}"), "shard_size": 8}
            ended = build(
                model, output=place, execution={"batch_size": batch}, lineage=f"{tmp_path}/set/l-{noise}-{batch}"
            )
            assert ended.code == 0, ended.err
            shards = sorted((tmp_path / f"set/{noise}-{batch}/shards").glob("*.tar"))
            pixels[noise, batch] = [data for shard in shards for data in images_in(shard)]
        card = (tmp_path / f"set/{noise}-4/README.md").read_text()
        assert ("a tile's bytes depend on which tiles shared its batch" in card) == (noise == "neither")
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(official_engine, "mersenne", lambda key: given.append(key) or mersenne(key))
    model = {**official(hub.repos["someone/generator"]), "name": "hf://someone/generator"}
    assert build(model, output={"path": str(tmp_path / "set/again")}, lineage=f"{tmp_path}/set/l-again").code == 0
    assert len(set(given)) >= 9, "every candidate's whole key"
    for noise in ("latents", "generator"):
        assert pixels[noise, 4] == pixels[noise, 8]
        assert len(set(pixels[noise, 4])) == 9
    assert pixels["neither", 4] != pixels["neither", 8]


def images_in(shard: Path) -> list[bytes]:
    with tarfile.open(shard) as members:
        return [members.extractfile(m).read() for m in members if m.name.endswith(".png")]  # type: ignore[union-attr]


def test_the_second_build_needs_no_hub(hub: Hub, cytosyn: Repo, build: Build, tmp_path: Path) -> None:
    model = official(cytosyn)
    assert build(model).code == 0
    before = contents(tmp_path / "set/out")
    hub.down = True
    asked = len(hub.asked)
    for shard in (tmp_path / "set/out/commits").glob("*.json"):
        shard.unlink()  # so that every tile is drawn again
    ended = build(model)
    assert ended.code == 0, ended.err
    assert contents(tmp_path / "set/out") == before
    assert len(hub.asked) == asked


@pytest.fixture
def exported(hub: Hub, tmp_path: Path) -> Repo:
    """A repository that holds a model of our own form."""
    folder = make_tiny_model(tmp_path / "exported")
    repo = hub.add("someone/tiny")
    repo.commit({path.name: path.read_bytes() for path in folder.iterdir()})
    return repo


NATIVE = {"sampler": {"steps": 2}, "terms": None}


def test_a_floating_revision_is_locked_and_a_moved_main_breaks_nothing(
    hub: Hub, exported: Repo, build: Build, tmp_path: Path
) -> None:
    first = exported.refs["main"]
    assert build("hf://someone/tiny", **NATIVE).code == 0
    lock = lock_in(tmp_path)
    assert (lock["model"]["revision"], lock["model"]["source"]) == (first, "hf://someone/tiny@main")
    files = exported.commits[first]
    exported.commit({**files, "config.json": files["config.json"].replace(b'"revision": "1"', b'"revision": "2"')})
    hub.down = True
    ended = build("hf://someone/tiny", **NATIVE, **{"classes": {"alpha": 7, "beta": 4}})
    assert ended.code == 0, ended.err  # grown by the locked commit, without a question to the Hub
    assert lock_in(tmp_path)["model"]["revision"] == first
    hub.down = False
    other = {"name": "hf://someone/tiny", "revision": exported.refs["main"]}
    ended = build(other, **NATIVE, **{"classes": {"alpha": 7, "beta": 4}})
    assert ended.code == 2  # whoever asks for the other commit means another set
    assert "was built with another recipe" in ended.err


def test_an_encoder_from_the_hub_embeds_tiles_of_a_model_that_only_names_it(
    hub: Hub, cytosyn: Repo, build: Build, tmp_path: Path, tiny: Path
) -> None:
    folder = make_tiny_model(tmp_path / "encoder")
    ended = build(official(cytosyn, encoder=str(folder)), screen={"agreement": {"min": -1.0, "max": 1.0}})
    assert ended.code == 0, ended.err
    assert lock_in(tmp_path)["encoder"]["id"] == "tiny-encoder"
    assert lock_in(tmp_path)["encoder"]["sha256"] != ""


def test_real_tiles_are_embedded_by_h0_mini_whose_commit_is_locked(hub: Hub, build: Build, tmp_path: Path) -> None:
    """Tiles in, tiles out: H0-mini of the Hub embeds them and screens what is drawn; both repositories are gated."""
    repo = hub.add(CYTOSYN, gated=True, licence="cc-by-nc-nd-4.0")
    repo.commit(make_repo(condition=ENCODER_WIDTH))
    encoder = hub.add("bioptimus/H0-mini", gated=True, licence="cc-by-nc-nd-4.0")
    files = {path.name: path.read_bytes() for path in write_published(tmp_path / "h0", side=32).iterdir()}
    first = encoder.commit(files)
    random = np.random.default_rng(0)
    for name in ("alpha", "beta"):
        (tmp_path / "tiles" / name).mkdir(parents=True)
        for number in range(4):
            picture = Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8))
            picture.save(tmp_path / "tiles" / name / f"{number}.png")
    form = {key: value for key, value in FORM.items() if key != "encoder_id"} | {"condition_width": ENCODER_WIDTH}
    given = {
        "embeddings": {"tiles": str(tmp_path / "tiles"), "label_level": "tile", "mpp": 0.5},
        "screen": {"agreement": {"min": -1.0, "max": 1.0}},
    }
    ended = build(official(repo, pipeline=form), **given)
    assert ended.code == 0, ended.err
    lock = lock_in(tmp_path)
    assert (lock["encoder"]["id"], lock["encoder"]["revision"]) == ("bioptimus/H0-mini", first)
    assert lock["encoder_licence"]["name"] == "CC-BY-NC-ND-4.0"
    encoder.commit({**files, "config.json": files["config.json"].replace(b"bicubic", b"nearest")})
    hub.down = True
    ended = build(official(repo, pipeline=form), **given, **{"classes": {"alpha": 6, "beta": 4}})
    assert ended.code == 0, ended.err
    assert lock_in(tmp_path)["encoder"]["revision"] == first


def test_pickles_beside_the_components_stay_at_the_hub(hub: Hub, cytosyn: Repo, build: Build) -> None:
    for path in ("extra.pt", "old/weights.bin", "transformer/diffusion_pytorch_model.bin"):
        swapped(cytosyn, path, b"x")
    ended = build(official(cytosyn))
    assert ended.code == 0, ended.err
    assert not [line for line in hub.downloads() if line.endswith((".pt", ".bin"))]


def test_code_that_ends_the_process_while_it_draws_is_no_success(cytosyn: Repo, build: Build, tmp_path: Path) -> None:
    code = cytosyn.commits[cytosyn.refs["main"]]["pipeline.py"]
    for statement, words in (
        (b"raise SystemExit(0)", "its code would end this process while it draws (status 0)"),
        (b"return (1,)", "its pipeline returns a tuple without 'images'"),
    ):
        changed = code.replace(b"form = self.transformer.config", statement)
        assert changed != code
        swapped(cytosyn, "pipeline.py", changed)
        place = f"{tmp_path}/{statement[0:3].decode()}"
        ended = build(official(cytosyn), output={"path": place}, lineage=f"{place}-lineage")
        assert ended.code == 2
        assert words in ended.err


def test_code_that_changed_after_the_pin_is_never_run(cytosyn: Repo, build: Build, tmp_path: Path) -> None:
    model = official(cytosyn)
    assert build(model, command="plan").code == 0
    cached = next((tmp_path / "home/hf/hub").rglob("snapshots/*/pipeline.py"))
    target = cached.resolve()
    trap = tmp_path / "it-ran"
    target.write_text(target.read_text() + f"\nopen({str(trap)!r}, 'w')\n")
    ended = build(model)
    assert ended.code == 2
    assert f"is not the pipeline.py of {CYTOSYN} at {cytosyn.refs['main']}" in ended.err
    assert "nothing of it was read or run. Delete the file" in ended.err
    assert not trap.exists()
    os.unlink(target)
    assert build(model).code == 0  # fetched again, as the message says


def test_a_permission_is_stated_and_cannot_change_under_a_set(cytosyn: Repo, build: Build, tmp_path: Path) -> None:
    permission = {"from": "Owkin, data office", "date": "2026-11-23", "document_sha256": "a" * 64}
    ended = build(official(cytosyn), terms={**TERMS, "sharing": "permitted"})
    assert ended.code == 2
    assert "terms.permission: is missing" in ended.err
    assert build(official(cytosyn), terms={**TERMS, "sharing": "permitted", "permission": permission}).code == 0
    card = (tmp_path / "set/out/README.md").read_text()
    assert "sharing by permission" in card
    assert "Owkin, data office" in card
    ended = build(official(cytosyn))
    assert ended.code == 2
    assert "terms: sharing differs" in ended.err


def test_tiles_of_a_gated_model_need_the_encoders_terms_too(hub: Hub, build: Build, tmp_path: Path) -> None:
    """A bank of H0-mini's embeddings carries H0-mini's terms, though the encoder itself is never opened."""
    repo = hub.add("someone/open")
    repo.commit(make_repo())
    bank = make_bank_file(tmp_path / "bank.parquet", make_tiny_model(tmp_path / "model"))
    form = {**FORM, "encoder_id": "bioptimus/H0-mini"}
    model = {**official(repo), "name": "hf://someone/open", "pipeline": form}
    ended = build(model, terms=None, embeddings={"bank": str(bank)})
    assert ended.code == 2
    assert "terms.accept: bioptimus/H0-mini is gated under CC-BY-NC-ND-4.0" in ended.err


def test_a_plan_of_a_pipeline_needs_neither_torch_nor_ray_nor_weights(
    hub: Hub, cytosyn: Repo, build: Build, tmp_path: Path
) -> None:
    build(official(cytosyn), command="plan")  # writes the spec
    program = (
        "import sys\n"
        "for name in ('torch', 'ray', 'diffusers'): sys.modules[name] = None\n"
        f"sys.argv = ['synthfactory', 'plan', {str(tmp_path / 'set/spec.yaml')!r}]\n"
        "from synthfactory.cli import main; main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"model {CYTOSYN} revision" in " ".join(ended.stdout.split())
    assert not [line for line in hub.downloads() if line.endswith(".safetensors")]


@pytest.mark.slow
def test_workers_under_ray_draw_the_same_bytes(cytosyn: Repo, build: Build, tmp_path: Path) -> None:
    """Two processes load the same repository's code at once; the token reaches them by the environment alone."""
    model = official(cytosyn)
    assert build(model, output={"path": str(tmp_path / "set/out"), "shard_size": 3}).code == 0
    shards = {name: data for name, data in contents(tmp_path / "set/out").items() if name.startswith("shards/")}
    build(
        model,
        command="plan",
        output={"path": str(tmp_path / "set/ray"), "shard_size": 3},
        lineage=str(tmp_path / "set/ray-lineage"),
    )
    ended = run("build", tmp_path / "set/spec.yaml", "--workers", 2)
    assert ended.code == 0, ended.err
    found = {name: data for name, data in contents(tmp_path / "set/ray").items() if name.startswith("shards/")}
    assert found == shards
