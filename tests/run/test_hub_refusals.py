"""Repositories of the Hub that cannot work: one message with the next step, before anything is written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_checks import snapshot
from hub_making import Build, official, swapped, without
from hubserver import GRANTED, STRANGER, Hub, Repo
from minirepo import FORM

CONFIG = "transformer/config.json"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
Change = Callable[[Repo, Hub, pytest.MonkeyPatch], dict[str, Any]]


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
