"""Mode finetune with `finetune.guided`: a SiT learns to draw what its base draws when a weaker model guides it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_making import config, make_base, make_weaker
from safetensors.torch import load_file, save_file
from training import cut_off, same_averages

from synthfactory.model.files import sha256_of
from synthfactory.model.folder import open_model
from synthfactory.model.sit import SiT
from synthfactory.model.weights import load_model
from synthfactory.spec.errors import InputError
from train.config import load_config
from train.export import export
from train.guided import Guide
from train.loop import train
from train.plan import plan

SCALE = 3.0
LOSSES = {"null_share": 0.5, "condition_noise": 1.0, "time": "uniform"}
OPTIMISER = {"steps": 150, "batch": 12, "rate": 1e-2, "warmup": 5, "ema": 0.9}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """TMP/base, and TMP/weaker, which is another SiT beside the same autoencoder and encoder."""
    found = make_base(tmp_path)
    make_weaker(tmp_path)
    return found


def hashed(tmp_path: Path, description: dict[str, Any]) -> None:
    for name in description["files"]:
        description["files"][name] = sha256_of(tmp_path / "weaker" / name)


def changed(tmp_path: Path, part: str, *names: str) -> None:
    """Adds 1 to tensors of TMP/weaker."""
    path = tmp_path / f"weaker/{part}.safetensors"
    state = load_file(path)
    save_file({**state, **{name: state[name] + 1 for name in names}}, path)
    rewritten(tmp_path, lambda description: hashed(tmp_path, description))


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


def states(sit: SiT, nobody: bool | None) -> tuple[torch.Tensor, ...]:
    """64 latents, times, conditions and whose condition is the null (None: every other one's), which no run has learnt from."""
    torch.manual_seed(3)
    config, rows = sit.config, 64
    x = torch.randn(rows, config.latent_channels, config.latent_size, config.latent_size)
    t, c = torch.rand(rows), config.condition_mean + config.condition_std * torch.randn(rows, config.condition_width)
    return x, t, c, torch.arange(rows) % 2 == 1 if nobody is None else torch.full((rows,), nobody)


def apart(sit: SiT, tmp_path: Path, base: Path, nobody: bool) -> float:
    """How far a SiT is from the guided one: mean square."""
    given = states(sit, nobody)
    with torch.no_grad():
        own, better, weaker = (each(*given)[0] for each in (sit, sit_of(base), sit_of(tmp_path / "weaker")))
    return float((own - (better + (SCALE - 1) * (better - weaker))).square().mean())


def test_the_aim_is_the_bases_velocity_and_the_step_from_the_weaker_one_carried_further(
    tmp_path: Path, base: Path
) -> None:
    better, weaker = sit_of(base), sit_of(tmp_path / "weaker")
    x, t, c, nobody = states(better, None)
    with torch.no_grad():
        one, other = better(x, t, c, nobody)[0], weaker(x, t, c, nobody)[0]
        assert torch.allclose(
            Guide(better, weaker, 2.5).velocity(x, t, c, nobody), one + 1.5 * (one - other), atol=1e-5
        )
        assert torch.allclose(Guide(better, weaker, 1.0).velocity(x, t, c, nobody), one, atol=1e-6)
    assert 0 < nobody.sum() < len(nobody)


@pytest.mark.parametrize(
    ("finetune", "precision", "share"),  # of what was missing; that of a run which took scale 1.5 in place of 3 would stay above 0.56
    [({}, "float32", 0.4), ({}, "bfloat16", 0.4), ({"lora": {"rank": 8}}, "float64", 0.9), ({"depth": 3}, "float32", 0.4)],
)  # fmt: skip
def test_a_sit_comes_to_draw_what_the_guided_base_draws_with_a_condition_and_without(
    tmp_path: Path, base: Path, finetune: dict[str, Any], precision: str, share: float
) -> None:
    before = {name: path.read_bytes() for name in ("base", "weaker") for path in [tmp_path / name / "sit.safetensors"]}
    changes = {"finetune": finetune, "precision": precision, "optimiser": OPTIMISER, "diffusion": LOSSES}
    train(load_config(guided(tmp_path, base, **changes, checkpoint_every=150)), tmp_path / "run", tmp_path / "cache")
    learnt = sit_of(export(tmp_path / "run", tmp_path / "tuned", model_id="m", revision="2"))
    for nobody in (False, True):
        assert apart(learnt, tmp_path, base, nobody) < share * apart(sit_of(base), tmp_path, base, nobody)
    assert all((tmp_path / name / "sit.safetensors").read_bytes() == found for name, found in before.items())


def test_an_export_says_who_guided_and_what_that_one_learnt_from(tmp_path: Path, base: Path) -> None:
    sets = [{"name": name, "recipe_sha256": name * 2} for name in "abc"]
    base_of = {"id": "x", "training": {"sets": sets[1:2]}}
    guide_of = {"id": "y", "training": {"sets": sets[1:]}}
    rewritten(tmp_path, lambda found: found.update(training={"sets": sets[:1], "base": base_of, "guide": guide_of}))
    train(load_config(guided(tmp_path, base)), tmp_path / "run", tmp_path / "cache")
    out = export(tmp_path / "run", tmp_path / "tuned", model_id="m", revision="2")
    training, sha256 = open_model(str(out)).config["training"], open_model(str(tmp_path / "weaker")).sha256
    known = training["guide"].pop("training")["sets"]
    assert sorted(each["name"] for each in known) == ["a", "b", "c"]
    assert training["guide"] == {"id": "weak", "revision": "7", "sha256": sha256}
    card = " ".join((out / "README.md").read_text().split())
    assert f"to draw as if guided away from weak, revision 7 ({sha256[:12]}), with scale 3" in card


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


def test_a_plan_counts_what_guides(tmp_path: Path, base: Path) -> None:
    lines = plan(load_config(guided(tmp_path, base)), tmp_path / "cache")
    assert sum(line.startswith(("base's sit ", "guide's sit ")) for line in lines) == 2
    assert not [
        line for line in lines if line.startswith(("base's sit ", "guide's sit ")) and " 0.00M of them" not in line
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["licence"].update(name="CC-BY-NC-4.0"), r"other terms than the base, tiny of revision 1 \(name\)"),
        (lambda found: found["licence"].update(sharing="local"), r"other terms than the base, tiny of revision 1 \(sharing\)"),
        (lambda found: found["licence"].update(gated=True), r"other terms than the base, .* \(gated, access\)"),
        (lambda found: found.update(domain="invented tissue"), r"other terms than the base, .* \(domain\)"),
        (lambda found: found["sit"].update(condition_std=3.0), r"conditions than the base, tiny of revision 1 \(condition_std\)"),
        (lambda found: found["sit"].update(latent_norm_eps=0.1), r"conditions than the base, .* \(latent_norm_eps\)"),
        (lambda found: found.update(resolution_mpp=0.25), r"conditions than the base, .* \(resolution_mpp\)"),
        (lambda found: found["files"].update({"encoder.safetensors": "0" * 64}), r"conditions than the base, .* \(encoder\)"),
        (lambda found: found["sit"].update(heads=5), "config.json: sit: "),
        (lambda found: found["sit"].update(width="wide"), "config.json: sit: "),
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


@pytest.mark.parametrize(
    ("part", "name"), [("sit", "bn.running_mean"), ("vae", "kl.quant_conv.bias"), ("vae", "kl.encoder.conv_in.bias")]
)
def test_a_guide_of_other_latents_is_refused(tmp_path: Path, base: Path, part: str, name: str) -> None:
    changed(tmp_path, part, name)
    with pytest.raises(
        InputError, match=r"^finetune.guided.by: .* in another way than those of the base, tiny of revision 1"
    ):
        train(load_config(guided(tmp_path, base)), tmp_path / "run", tmp_path / "cache")


def test_a_guide_may_decode_in_another_way_and_bind_less(tmp_path: Path, base: Path) -> None:
    changed(tmp_path, "vae", "kl.decoder.conv_in.bias")
    description = json.loads((base / "config.json").read_text())
    description["licence"]["sharing"] = "local"
    (base / "config.json").write_text(json.dumps(description))
    train(load_config(guided(tmp_path, base)), tmp_path / "run", tmp_path / "cache")
    out = export(tmp_path / "run", tmp_path / "tuned", model_id="m", revision="2")
    assert open_model(str(out)).licence["sharing"] == "local"


def test_a_sit_does_not_guide_itself_under_another_name_and_a_damaged_guide_is_named(
    tmp_path: Path, base: Path
) -> None:
    checked = load_config(guided(tmp_path, base))
    kept = (tmp_path / "weaker/sit.safetensors").read_bytes()
    (tmp_path / "weaker/sit.safetensors").write_bytes(kept[:-9])
    with pytest.raises(InputError, match=r"^finetune.guided.by: .*sit.safetensors: differs from the sha256"):
        train(checked, tmp_path / "run", tmp_path / "cache")
    shutil.copyfile(base / "sit.safetensors", tmp_path / "weaker/sit.safetensors")
    rewritten(tmp_path, lambda description: hashed(tmp_path, description))
    with pytest.raises(InputError, match=r"^finetune.guided.by: .*: draws with the base's own SiT; name a model that"):
        plan(checked, tmp_path / "cache")
    missing = load_config(config(tmp_path, base, finetune={"guided": {"by": str(tmp_path / "nowhere")}}))
    with pytest.raises(InputError, match=r"^finetune.guided.by: .*nowhere"):
        plan(missing, tmp_path / "cache")


def test_guidance_is_learnt_in_mode_finetune_alone(tmp_path: Path, base: Path) -> None:
    for changes, what in (
        ({"mode": "vae"}, "finetune.guided: is for mode finetune; leave it out with mode vae"),
        ({"encoder_run": "x"}, "encoder_run: would condition in another way than base and guide"),
        ({"finetune": {"statistics": "measure"}}, "finetune.statistics: measure would change what the base"),
        ({"finetune": {"guided": {"by": "phantom", "scale": 1.0}}}, "finetune.guided.scale"),
        ({"finetune": {"guided": {"by": {"name": "phantom", "encoder": "h0-mini"}}}}, "finetune.guided.by: names an encoder"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=what):
            load_config(guided(tmp_path, base, **changes))
