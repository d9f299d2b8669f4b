"""Whole builds from repositories of the Hub (a stand-in on loopback): pinned, offline afterwards, refused with the next step."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cli_checks import snapshot
from hubserver import GRANTED, STRANGER, Hub, Repo, environment, serve_hub
from miniencoder import WIDTH as ENCODER_WIDTH
from miniencoder import write_published
from minirepo import FORM, make_repo
from PIL import Image
from running import Ended, contents, run, write_spec
from tinymodel import make_bank_file, make_tiny_model

CYTOSYN = "Owkin-Bioptimus/CytoSyn"
TERMS = {"accept": ["CC-BY-NC-ND-4.0"]}
CONFIG = "transformer/config.json"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SMALL = {
    "classes": {"alpha": 5, "beta": 4},
    "sampler": {"method": "pipeline", "steps": 2},
    "execution": {"batch_size": 4},
}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return make_repo()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub, and caches of this test alone; a token that has access is in the environment."""
    with serve_hub() as server:
        for name in ("HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment(server, tmp_path / "home", GRANTED).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def cytosyn(hub: Hub, files: dict[str, bytes]) -> Repo:
    repo = hub.add(CYTOSYN, gated=True, licence="cc-by-nc-nd-4.0")
    repo.commit(files)
    return repo


Build = Callable[..., Ended]


@pytest.fixture
def build(tiny: Path, tmp_path: Path) -> Build:
    """build(model, **changes): `build --local` of a spec for that model, into tmp_path/set."""

    def make(model: Any, command: str = "build", **changes: Any) -> Ended:
        given = {"embeddings": {"bank": str(tiny / "bank.parquet")}, "terms": TERMS, **SMALL, **changes}
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        spec = write_spec(folder / "spec.yaml", model=model, **given)
        return run(command, spec, *(["--local"] if command == "build" else []))

    return make


def official(repo: Repo, **changes: Any) -> dict[str, Any]:
    return {"name": "cytosyn", "revision": repo.refs["main"], "trust_remote_code": True, "pipeline": FORM, **changes}


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


def test_noise_per_candidate_makes_pixels_free_of_the_batch(hub: Hub, build: Build, tmp_path: Path) -> None:
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


Change = Callable[[Repo, Hub, pytest.MonkeyPatch], dict[str, Any]]


def swapped(repo: Repo, path: str, content: bytes) -> dict[str, Any]:
    repo.commit({**repo.commits[repo.refs["main"]], path: content})
    return {}


def without(repo: Repo, *paths: str) -> dict[str, Any]:
    repo.commit({path: content for path, content in repo.commits[repo.refs["main"]].items() if path not in paths})
    return {}


def indexed(repo: Repo, **changes: Any) -> dict[str, Any]:
    """model_index.json with other components; None leaves one out."""
    given = {**json.loads(repo.commits[repo.refs["main"]]["model_index.json"]), **changes}
    content = json.dumps({name: entry for name, entry in given.items() if entry is not None})
    return swapped(repo, "model_index.json", content.encode())


def token(monkeypatch: pytest.MonkeyPatch, value: str | None) -> dict[str, Any]:
    if value is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", value)
    return {}


REFUSALS: dict[str, tuple[Change, str]] = {
    "no token": (lambda r, h, m: token(m, None), "no valid token of the Hub is here; ask for access at https://huggingface.co/Owkin"),
    "a token without access": (lambda r, h, m: token(m, STRANGER), "your account has no access yet; ask for access at https://"),
    "a token that is none": (lambda r, h, m: token(m, "hf_wrong"), "refuses the token that is here; log in again"),
    "no such repository": (lambda r, h, m: {"model": {"name": "hf://someone/none"}}, "the Hub shows no such repository"),
    "no such revision": (lambda r, h, m: {"model": {"name": "cytosyn", "revision": "v9"}}, "has no revision 'v9'"),
    "no Hub": (lambda r, h, m: setattr(h, "down", True) or {}, "cannot be reached (status 503)"),
    "no trust": (lambda r, h, m: {"trust_remote_code": False}, "is run by its own code; read it at https://huggingface.co/Owkin"),
    "trust in a branch": (lambda r, h, m: {"revision": "main"}, "trust_remote_code needs a commit, and 'main' may move"),
    "a branch named like a commit": (
        lambda r, h, m: r.refs.update({"ab" * 20: r.refs["main"]}) or {"revision": "ab" * 20}, "is a branch or tag that is named like a"
    ),
    "an address with a password": (
        lambda r, h, m: m.setenv("HF_ENDPOINT", f"http://{GRANTED}:x@127.0.0.1:1") or {}, "the Hub (http://127.0.0.1:1) cannot be reached"
    ),
    "licence not accepted": (lambda r, h, m: {"terms": None}, "terms.accept: Owkin-Bioptimus/CytoSyn is gated under CC-BY-NC-ND-4.0"),
    "our sampler": (lambda r, h, m: {"sampler": {"steps": 2}}, "sampler.method: 'ode' is ours, but Owkin-Bioptimus/CytoSyn is run by"),
    "weights cut short": (lambda r, h, m: swapped(r, WEIGHTS, r.commits[r.refs["main"]][WEIGHTS][:-9]), "is cut short"),
    "a pickle posing as weights": (lambda r, h, m: swapped(r, WEIGHTS, pickle.dumps({"a": 1})), "is a pickle, which could run code"),
    "weights in a pickle only": (
        lambda r, h, m: swapped(r, "transformer/model.bin", b"x") or without(r, WEIGHTS), "holds weights as a pickle only (transformer/"
    ),
    "a config of another size": (
        lambda r, h, m: swapped(r, CONFIG, r.commits[r.refs["main"]][CONFIG].replace(b'"depth": 2', b'"depth": 3')),
        "transformer: its weights lack blocks.2.",
    ),
    "a config of another width": (
        lambda r, h, m: swapped(r, CONFIG, r.commits[r.refs["main"]][CONFIG].replace(b'"cond_dim": 16', b'"cond_dim": 12')),
        "its config.json asks for (32, 12)",
    ),
    "a config of less": (
        lambda r, h, m: swapped(r, CONFIG, r.commits[r.refs["main"]][CONFIG].replace(b'"depth": 2', b'"depth": 1')),
        "which its config.json has no place for",
    ),
    "a config that no network can be built from": (
        lambda r, h, m: swapped(r, CONFIG, r.commits[r.refs["main"]][CONFIG].replace(b'"hidden_size": 32', b'"hidden_size": "x"')),
        "transformer: cannot be built from its config.json (TypeError",
    ),
    "a config that is none": (lambda r, h, m: swapped(r, CONFIG, b"{"), "transformer/config.json: is no JSON that can be read"),
    "a config that is not there": (lambda r, h, m: without(r, "vae/config.json"), "vae/config.json: is missing"),
    "an index without a part": (
        lambda r, h, m: indexed(r, vae=None), "class CytoSynPipeline needs vae, which model_index.json names no component for"
    ),
    "a class that diffusers lacks": (
        lambda r, h, m: indexed(r, vae=["diffusers", "AutoencoderXY"]), "vae: model_index.json names diffusers.AutoencoderXY, which cannot"
    ),
    "a library that is not here": (
        lambda r, h, m: indexed(r, transformer=["tinny_sit", "TinySiT"]), "names tinny_sit.TinySiT, which cannot be found here"
    ),
    "a part without weights": (lambda r, h, m: without(r, WEIGHTS), "transformer: its weights lack "),
    "parts that are not there": (
        lambda r, h, m: swapped(r, f"{WEIGHTS}.index.json", b'{"weight_map": {"a": "b.safetensors"}}'), "names b.safetensors, which is not"
    ),
    "parts of nothing": (lambda r, h, m: swapped(r, f"{WEIGHTS}.index.json", b"{}"), "safetensors.index.json: names no files"),
    "weights that are not finite": (
        lambda r, h, m: swapped(r, WEIGHTS, r.commits[r.refs["main"]][WEIGHTS][:-4] + b"\xff\xff\xff\x7f"),
        "holds numbers that are not finite; name another revision",
    ),
    "code that ends the process": (
        lambda r, h, m: swapped(r, "pipeline.py", b"raise SystemExit(0)\n" + r.commits[r.refs["main"]]["pipeline.py"]),
        "pipeline.py cannot be imported (its code would end this process, status 0)",
    ),
    "code of a part that ends the process": (
        lambda r, h, m: swapped(r, "transformer/tiny_sit.py", b"exit(0)\n" + r.commits[r.refs["main"]]["transformer/tiny_sit.py"]),
        "transformer/tiny_sit.py cannot be imported",
    ),
    "another number format": (
        lambda r, h, m: {"execution": {"dtype": "bfloat16"}}, "execution.dtype: 'bfloat16' is for our own networks, but Owkin-Bioptimus"
    ),
    "no index": (lambda r, h, m: without(r, "model_index.json"), "holds no model of our form"),
    "an index of no kind": (lambda r, h, m: indexed(r, _class_name=[]), "names no pipeline class"),
    "no pipeline code": (lambda r, h, m: without(r, "pipeline.py"), "the official backend runs that file"),
    "another argument": (
        lambda r, h, m: {"pipeline": {**FORM, "embeds": "uni_embeds"}}, "its pipeline takes no 'uni_embeds' (it takes h0_mini_embeds, "
    ),
    "embeddings of another width": (lambda r, h, m: {"pipeline": {**FORM, "condition_width": 768}}, "the model needs width 768"),
    "embeddings of another encoder": (
        lambda r, h, m: {"pipeline": {**FORM, "encoder_id": "bioptimus/H0-mini"}}, "the model is conditioned on bioptimus/H0-mini"
    ),
    "no encoder at hand": (lambda r, h, m: {"screen": {"agreement": {}}}, "holds no encoder; name tiny-encoder under model.encoder"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_work_is_refused_before_any_work(
    name: str, hub: Hub, cytosyn: Repo, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, words = REFUSALS[name]
    given = change(cytosyn, hub, monkeypatch)
    model = official(cytosyn)
    model.update({key: given.pop(key) for key in ("revision", "trust_remote_code", "pipeline") if key in given})
    ended = build(given.pop("model", model), **given)
    assert ended.code == 2, ended.err
    assert words in ended.err
    assert "Traceback" not in ended.err
    assert sum(line.startswith("Error: ") for line in ended.err.splitlines()) == 1, ended.err
    assert GRANTED not in ended.err
    assert set(snapshot(tmp_path / "set")) == {"spec.yaml"}


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
        ended = build(official(cytosyn), output={"path": f"{tmp_path}/{statement[0:3].decode()}"})
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
    build(model, command="plan", output={"path": str(tmp_path / "set/ray"), "shard_size": 3})
    ended = run("build", tmp_path / "set/spec.yaml", "--workers", 2)
    assert ended.code == 0, ended.err
    found = {name: data for name, data in contents(tmp_path / "set/ray").items() if name.startswith("shards/")}
    assert found == shards
