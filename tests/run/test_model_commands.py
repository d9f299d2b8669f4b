"""model show, import, parity at the command line, on a miniature repository behind a stand-in of the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cli_checks import check_refusal
from hubserver import GRANTED, Hub, environment, serve_hub
from minirepo import FORM, make_repo
from running import run, write_spec
from safetensors.torch import load_file, save_file
from tinymodel import SIZES, make_bank_file, make_tiny_model

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
    check_refusal(run("model", "parity", spec, imported, "--dtype-a", "bfloat16"), "in float32 only")
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
    assert "phantom revision 9, run by our code" in ended.out
    assert re.search(r"sit +\d+\.\dM parameters, sha256 [0-9a-f]{64}", ended.out)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "neither a built-in model"),
        ("hf://a", "is no repository of the Hub"),
        ("", "is empty"),
        (" phantom", "has spaces at an end"),
        ("a\x1b[31m", "holds a control or invisible character"),
        ("cytosyn@v1", "write hf://Owkin-Bioptimus/CytoSyn@v1"),
    ],
)
def test_names_that_mean_no_model(hub: Hub, tmp_path: Path, name: str, words: str) -> None:
    check_refusal(run("model", "show", name), words)
    check_refusal(run("model", "parity", name, name), words)
    if "@" in name:
        check_refusal(run("model", "import", name, tmp_path / "out"), words)
        check_refusal(run("plan", write_spec(tmp_path / "spec.yaml", model=name, embeddings={"bank": "b"})), words)


def test_a_licence_that_the_source_states_is_not_overridden(hub: Hub, tmp_path: Path) -> None:
    ended = run("model", "import", "cytosyn", tmp_path / "out", *IMPORT, "--licence", "MIT")
    check_refusal(ended, "--licence MIT: cytosyn is under CC-BY-NC-ND-4.0, which no option changes")
    assert not (tmp_path / "out").exists()
    ended = run("model", "import", "cytosyn", tmp_path / "out", *IMPORT, "--licence", "CC-BY-NC-ND-4.0")
    assert ended.code == 0, ended.err


def test_parity_of_models_that_cannot_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_tiny_model(tmp_path / "first")
    sit, vae, encoder = SIZES["sit"], SIZES["vae"], SIZES["encoder"]
    larger = {"sit": {**sit, "latent_size": 8}, "vae": vae, "encoder": {**encoder, "image_size": 64}}
    deeper = {
        "sit": {**sit, "latent_channels": 8},
        "vae": {**vae, "latent_channels": 8},
        "encoder": encoder,
    }
    for sizes, words in ((larger, "A has latent size 4, B 8"), (deeper, "A has latent channels 4, B 8")):
        monkeypatch.setattr("tinymodel.SIZES", sizes)
        second = make_tiny_model(tmp_path / words[6:12])
        values = json.loads((second / "config.json").read_text())
        values["tile_size_px"] = 8 * values["sit"]["latent_size"]
        (second / "config.json").write_text(json.dumps(values))
        check_refusal(run("model", "parity", first, second), words)
    for option in (("--steps", "100000"), ("--scale", "nan"), ("--scale", "1000"), ("--tolerance", "nan")):
        ended = run("model", "parity", first, first, *option)
        assert ended.code == 2
        assert f"Invalid value for '{option[0]}'" in ended.err
        assert "Traceback" not in ended.err


def test_an_endpoint_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://[bad")
    check_refusal(run("model", "show", "phantom"), "HF_ENDPOINT: is no address")
