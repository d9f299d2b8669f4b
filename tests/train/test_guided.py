"""Mode finetune with `finetune.guided`: a SiT learns to draw what its base draws when a weaker model guides it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_making import config, encoder_run, make_base
from safetensors.torch import load_file, save_file
from tinymodel import make_tiny_model
from training import cut_off, same_averages

from synthfactory.model.files import sha256_of
from synthfactory.model.folder import open_model
from synthfactory.model.sit import SiT
from synthfactory.model.weights import load_model
from synthfactory.spec.errors import InputError
from train.config import load_config
from train.export import export
from train.loop import train
from train.plan import plan

SCALE = 2.0


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """TMP/base, and TMP/weaker, which is another SiT beside the same autoencoder and encoder."""
    found = make_base(tmp_path)
    weaker = make_tiny_model(tmp_path / "weaker", seed=1)
    description = json.loads((weaker / "config.json").read_text()) | {"id": "weak", "revision": "7"}
    (weaker / "config.json").write_text(json.dumps(description))
    return found


def guided(tmp_path: Path, base: Path, **changes: Any) -> str:
    given = changes.pop("finetune", {})
    by = {"by": str(tmp_path / "weaker"), "scale": SCALE}
    return config(tmp_path, base, finetune={"guided": by, **given}, samples=None, **changes)


def rewritten(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = tmp_path / "weaker/config.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def sit_of(folder: Path) -> SiT:
    return load_model(open_model(str(folder))).sit


def apart(sit: SiT, tmp_path: Path, base: Path, nobody: bool) -> float:
    """How far a SiT is from the guided one, on latents and conditions that it has not learnt from."""
    torch.manual_seed(3)
    config, rows = sit.config, 64
    x = torch.randn(rows, config.latent_channels, config.latent_size, config.latent_size)
    t, c = torch.rand(rows), config.condition_mean + config.condition_std * torch.randn(rows, config.condition_width)
    null = torch.full((rows,), nobody)
    with torch.no_grad():
        own, better, weaker = (each(x, t, c, null)[0] for each in (sit, sit_of(base), sit_of(tmp_path / "weaker")))
    return float((own - (weaker + SCALE * (better - weaker))).square().mean())


def test_a_sit_comes_to_draw_what_the_guided_base_draws_with_a_condition_and_without(
    tmp_path: Path, base: Path
) -> None:
    before = {name: path.read_bytes() for name in ("base", "weaker") for path in [tmp_path / name / "sit.safetensors"]}
    optimiser = {"steps": 150, "batch": 12, "rate": 1e-2, "warmup": 5, "ema": 0.9}
    losses = {"null_share": 0.5, "condition_noise": 1.0, "time": "uniform"}
    path = guided(tmp_path, base, optimiser=optimiser, diffusion=losses, checkpoint_every=150)
    train(load_config(path), tmp_path / "run", tmp_path / "cache")
    learnt = sit_of(export(tmp_path / "run", tmp_path / "tuned", model_id="m", revision="2"))
    for nobody in (False, True):
        assert apart(learnt, tmp_path, base, nobody) < 0.5 * apart(sit_of(base), tmp_path, base, nobody)
    assert all((tmp_path / name / "sit.safetensors").read_bytes() == found for name, found in before.items())


def test_an_export_says_who_guided_and_what_that_one_learnt_from(tmp_path: Path, base: Path) -> None:
    rewritten(tmp_path, lambda found: found.update(training={"sets": [{"name": "s", "recipe_sha256": "1"}]}))
    train(load_config(guided(tmp_path, base)), tmp_path / "run", tmp_path / "cache")
    out = export(tmp_path / "run", tmp_path / "tuned", model_id="m", revision="2")
    training, sha256 = open_model(str(out)).config["training"], open_model(str(tmp_path / "weaker")).sha256
    assert training["guide"] == {
        "id": "weak", "revision": "7", "sha256": sha256, "training": {"sets": [{"name": "s", "recipe_sha256": "1"}]},
    }  # fmt: skip
    card = " ".join((out / "README.md").read_text().split())
    assert f"to draw as if guided away from weak, revision 7 ({sha256[:12]}), with scale 2" in card


def test_a_cut_off_run_ends_with_the_same_weights_and_refuses_another_guide(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = load_config(guided(tmp_path, base, finetune={"depth": 3, "lora": None}))
    train(checked, tmp_path / "whole", tmp_path / "cache")
    cut_off(monkeypatch, checked, tmp_path / "cut", tmp_path / "cache")
    kept = (tmp_path / "weaker/config.json").read_text()
    rewritten(tmp_path, lambda found: found.update(revision="8"))
    with pytest.raises(InputError, match=r"the model named as finetune.guided.by changed since it was begun"):
        train(checked, tmp_path / "cut", tmp_path / "cache")
    (tmp_path / "weaker/config.json").write_text(kept)
    assert train(checked, tmp_path / "cut", tmp_path / "cache") == 2
    assert same_averages(tmp_path / "whole", tmp_path / "cut")


def test_adapters_learn_it_as_well(tmp_path: Path, base: Path) -> None:
    train(load_config(guided(tmp_path, base, finetune={"lora": {"rank": 2}})), tmp_path / "run", tmp_path / "cache")
    learnt = sit_of(export(tmp_path / "run", tmp_path / "tuned", model_id="m", revision="2"))
    assert not torch.equal(learnt.blocks[0].attn.qkv.weight, sit_of(base).blocks[0].attn.qkv.weight)  # type: ignore[union-attr, arg-type]


def test_a_plan_counts_what_guides(tmp_path: Path, base: Path) -> None:
    lines = plan(load_config(guided(tmp_path, base)), tmp_path / "cache")
    assert sum(line.startswith(("base's sit ", "guide's sit ")) for line in lines) == 2
    assert not [
        line for line in lines if line.startswith(("base's sit ", "guide's sit ")) and " 0.00M of them" not in line
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["licence"].update(name="CC-BY-NC-4.0"), "is under CC-BY-NC-4.0, the base under Apache-2.0"),
        (lambda found: found["licence"].update(gated=True), r"is under Apache-2.0 \(gated\), the base under Apache-2.0; both must"),
        (lambda found: found["sit"].update(condition_std=3.0), r"latents or conditions than tiny \(condition_std\)"),
        (lambda found: found["encoder"].update(id="other"), r"latents or conditions than tiny \(encoder\)"),
    ],
)  # fmt: skip
def test_a_guide_that_does_not_fit_is_refused_before_anything_is_trained(
    tmp_path: Path, base: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewritten(tmp_path, change)
    checked = load_config(guided(tmp_path, base))
    for work in (
        lambda: plan(checked, tmp_path / "cache"),
        lambda: train(checked, tmp_path / "run", tmp_path / "cache"),
    ):
        with pytest.raises(InputError, match=rf"^finetune.guided.by: .*{message}"):
            work()


def test_a_base_does_not_guide_itself_and_a_guide_normalises_latents_as_the_base_does(
    tmp_path: Path, base: Path
) -> None:
    itself = load_config(config(tmp_path, base, finetune={"guided": {"by": str(base)}}))
    with pytest.raises(InputError, match=r"finetune.guided.by: .* is the base itself; name one that draws less well"):
        train(itself, tmp_path / "run", tmp_path / "cache")
    missing = load_config(config(tmp_path, base, finetune={"guided": {"by": str(tmp_path / "nowhere")}}))
    with pytest.raises(InputError, match=r"^finetune.guided.by: .*nowhere"):
        plan(missing, tmp_path / "cache")
    path = tmp_path / "weaker/sit.safetensors"
    state = load_file(path)
    save_file({**state, "bn.running_mean": state["bn.running_mean"] + 1}, path)
    rewritten(tmp_path, lambda found: found["files"].update({path.name: sha256_of(path)}))
    with pytest.raises(InputError, match=r"finetune.guided.by: weak normalises latents in another way than tiny"):
        train(load_config(guided(tmp_path, base)), tmp_path / "run", tmp_path / "cache")


def test_guidance_is_learnt_in_mode_finetune_alone(tmp_path: Path, base: Path) -> None:
    for changes, what in (
        ({"mode": "vae"}, "finetune.guided: is for mode finetune"),
        ({"encoder_run": str(encoder_run(tmp_path))}, "finetune.guided: is for mode finetune, with the base's own encoder"),
        ({"finetune": {"statistics": "measure"}}, "finetune.statistics: measure would change what the base"),
        ({"finetune": {"guided": {"by": "phantom", "scale": 1.0}}}, "finetune.guided.scale"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=what):
            load_config(guided(tmp_path, base, **changes))
