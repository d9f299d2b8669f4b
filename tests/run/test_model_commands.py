"""model show, import, parity at the command line, on a miniature repository behind a stand-in of the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hubserver import GRANTED, Hub, environment, serve_hub
from minirepo import FORM, make_repo
from running import run, write_spec
from safetensors.torch import load_file, save_file
from tinymodel import make_bank_file, make_tiny_model

CYTOSYN = "Owkin-Bioptimus/CytoSyn"
IMPORT = ("--norm-groups", 4, "--encoder-id", "tiny-encoder")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as server:
        for name, value in environment(server, tmp_path / "home", GRANTED).items():
            monkeypatch.setenv(name, value)
        server.add(CYTOSYN, gated=True, licence="cc-by-nc-nd-4.0").commit(make_repo())
        yield server


@pytest.fixture
def spec(hub: Hub, tmp_path: Path) -> Path:
    """A spec whose model is the repository's own pipeline, and a bank that fits it."""
    make_bank_file(tmp_path / "bank.parquet", make_tiny_model(tmp_path / "tiny"))
    commit = hub.repos[CYTOSYN].refs["main"]
    model = {"name": "cytosyn", "revision": commit, "trust_remote_code": True, "pipeline": FORM}
    return write_spec(
        tmp_path / "spec.yaml",
        model=model,
        embeddings={"bank": str(tmp_path / "bank.parquet")},
        sampler={"method": "pipeline", "steps": 3},
        terms={"accept": ["CC-BY-NC-ND-4.0"]},
    )


def test_an_import_draws_the_pixels_of_the_original(spec: Path, tmp_path: Path) -> None:
    """Both backends on the same conditions and noise: equal within float32 rounding, step by step and in pixels."""
    imported = tmp_path / "native"
    ended = run("model", "import", "cytosyn", imported, *IMPORT)
    assert ended.code == 0, ended.err
    assert "none missing, none left over" in ended.out
    for scale in ("1.0", "2.5"):
        ended = run(
            "model", "parity", spec, imported, "--bank", tmp_path / "bank.parquet", "--steps", 6, "--scale", scale
        )
        assert ended.code == 0, ended.err + ended.out
        errors = [float(line.split()[-1]) for line in ended.out.splitlines()[1:7]]
        assert max(errors) < 1e-5
        assert "largest 0," in ended.out or "largest 1," in ended.out
        assert float(ended.out.split("mean difference ")[1].split()[0]) < 0.01


def test_parity_finds_a_wrong_tensor_and_the_cost_of_a_number_format(spec: Path, tmp_path: Path) -> None:
    imported = tmp_path / "native"
    assert run("model", "import", "cytosyn", imported, *IMPORT).code == 0
    ended = run("model", "parity", imported, imported, "--dtype-b", "bfloat16")
    assert ended.code == 1
    assert "they differ: a step is off by" in ended.err
    assert run("model", "parity", imported, imported, "--dtype-b", "bfloat16", "--tolerance", "0.1").code == 0
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    state = load_file(imported / "sit.safetensors")
    state["blocks.1.attn.qkv.bias"] += 0.05
    save_file(state, tmp_path / "sit.safetensors")
    (tmp_path / "repo/transformer").mkdir(parents=True)
    (tmp_path / "repo/vae").mkdir()
    repo = make_repo()
    for name in ("transformer/config.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"):
        (tmp_path / "repo" / name).write_bytes(repo[name])
    save_file(state, tmp_path / "repo/transformer/a.safetensors")
    assert run("model", "import", tmp_path / "repo", tmp_path / "other", *IMPORT).code == 0
    ended = run("model", "parity", spec, tmp_path / "other")
    assert ended.code == 1
    assert "they differ" in ended.err


def test_an_imported_model_builds_a_set(spec: Path, tmp_path: Path) -> None:
    assert run("model", "import", "cytosyn", tmp_path / "native", *IMPORT).code == 0
    values = yaml.safe_load(spec.read_text())
    values.update(
        model=str(tmp_path / "native"), sampler={"steps": 2, "solver": "euler"}, classes={"alpha": 3, "beta": 2}
    )
    spec.write_text(yaml.safe_dump(values))
    ended = run("build", spec, "--local")
    assert ended.code == 0, ended.err
    lock = yaml.safe_load((tmp_path / "out/spec.lock.yaml").read_text())
    assert lock["model"]["id"] == CYTOSYN
    assert lock["terms"]["sharing"] == "local"
    values["terms"] = {}  # what was gated stays so in our form
    spec.write_text(yaml.safe_dump(values))
    ended = run("build", spec, "--local")
    assert ended.code == 2
    assert "terms.accept" in ended.err


def test_show_says_what_is_there_and_fetches_no_weights(hub: Hub, tmp_path: Path) -> None:
    ended = run("model", "show", "cytosyn")
    assert ended.code == 0, ended.err
    commit = hub.repos[CYTOSYN].refs["main"]
    assert f"{CYTOSYN} revision {commit}, run by its own code" in ended.out
    assert "licence      CC-BY-NC-ND-4.0" in ended.out
    assert "gated" in ended.out
    assert "h0_mini_embeds" in ended.out
    assert "not fetched yet" in ended.out
    assert not [line for line in hub.downloads() if line.endswith(".safetensors")]
    ended = run("model", "show", "phantom")
    assert ended.code == 0
    assert "phantom revision 1, run by our code" in ended.out
    assert re.search(r"sit +\d+\.\dM parameters, sha256 [0-9a-f]{64}", ended.out)
    for name, words in (("nowhere", "neither a built-in model"), ("hf://a", "is no repository of the Hub")):
        ended = run("model", "show", name)
        assert ended.code == 2
        assert words in ended.err
