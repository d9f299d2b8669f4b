"""The loop: averages, parts of a batch, validation, and what stops a run without losing it."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from test_training import write_config, write_shard
from training import cut_off, same_averages, spoil_loss

from synthfactory.spec.errors import InputError
from train import checkpoint
from train.cli import cli
from train.config import Optimiser, load_config
from train.ema import Ema
from train.loop import train
from train.optimiser import rate_at
from train.team import Team
from train.watch import AFTER_STEPS, DivergedError, Watch

STEPS = {"steps": 6, "batch": 4, "rate": 1e-3, "warmup": 2}


def weights(run: Path, name: str = "weights") -> dict[str, torch.Tensor]:
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / f"{name}.safetensors")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shard(tmp_path / "shards")
    return tmp_path


def test_parts_of_a_batch_give_the_step_of_the_whole(shards: Path) -> None:
    whole = load_config(write_config(shards, optimiser=STEPS))
    train(whole, shards / "whole", shards / "cache")
    train(load_config(write_config(shards, optimiser={**STEPS, "accumulate": 2})), shards / "parts", shards / "cache")
    one, other = weights(shards / "whole"), weights(shards / "parts")
    assert all(torch.allclose(one[name], other[name], atol=2e-5) for name in one)
    assert lines(shards / "parts")[-1]["loss"] == pytest.approx(lines(shards / "whole")[-1]["loss"], rel=1e-4)


def test_several_averages_are_kept_and_resumed(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(shards, optimiser={**STEPS, "ema": [0.05, 0.2, 0.99]})
    train(load_config(config), shards / "run", shards / "cache")
    found = {name: weights(shards / "run", name) for name in ("weights", "average", "average-0.2", "average-0.99")}
    name = "vit.patch_embed.proj.weight"
    off = [(found[key][name] - found["weights"][name]).abs().mean().item() for key in list(found)[1:]]
    assert 0 < off[0] < off[1] < off[2]
    step, path = checkpoint.average_file(shards / "run", 0.2)
    assert (step, path.name) == (6, "average-0.2.safetensors")
    cut_off(monkeypatch, load_config(config), shards / "cut", shards / "cache")
    train(load_config(config), shards / "cut", shards / "cache")
    for name, whole in found.items():
        again = weights(shards / "cut", name)
        assert all(torch.equal(again[key], value) for key, value in whole.items()), name


def test_the_last_checkpoints_and_the_multiples_stay(shards: Path) -> None:
    config = write_config(shards, checkpoint_every=1, keep_last=2, keep_every=3, optimiser={**STEPS, "steps": 8})
    train(load_config(config), shards / "run", shards / "cache")
    assert checkpoint.steps(shards / "run") == [3, 6, 7, 8]


def test_validation_is_on_other_patients_and_comes_out_the_same(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"shards": str(shards / "shards"), "validation": {"share": 0.25, "every": 2, "tiles": 4}}
    config = load_config(write_config(shards, data=data))
    train(config, shards / "whole", shards / "cache")
    wanted = [(line["step"], line.get("validation_loss"), line.get("loss")) for line in lines(shards / "whole")]
    assert [step for step, value, _ in wanted if value is not None] == [0, 2, 4, 6]
    extra = json.loads((shards / "whole" / "extra.json").read_text())
    assert (extra["tiles"], extra["validation_tiles"]) == (9, 3)
    real = checkpoint.save

    def dies(*arguments: Any, **named: Any) -> Any:
        if arguments[1] == 4:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr("train.loop.checkpoint.save", dies)
    with pytest.raises(KeyboardInterrupt):
        train(config, shards / "cut", shards / "cache")
    monkeypatch.setattr("train.loop.checkpoint.save", real)
    train(config, shards / "cut", shards / "cache")
    assert [(line["step"], line.get("validation_loss"), line.get("loss")) for line in lines(shards / "cut")] == wanted


@pytest.mark.parametrize("batch", [1, 2, 3, 6])
def test_as_many_tiles_are_validated_as_were_asked_for_whatever_a_batch_is(shards: Path, batch: int) -> None:
    """At step 0 all runs have one network, and look at the same tiles: 5 of them are 3 and 2."""
    data = {"shards": str(shards / "shards"), "validation": {"share": 0.25, "tiles": 5}}
    for number in (5, batch):
        config = write_config(shards, data=data, optimiser={**STEPS, "steps": 1, "batch": number})
        train(load_config(config), shards / f"of {number}", shards / "cache")
    whole, parts = (lines(shards / f"of {number}")[0] for number in (5, batch))
    assert parts["step"] == 0
    for name in ("loss", "accuracy", "classes"):
        assert parts[f"validation_{name}"] == pytest.approx(whole[f"validation_{name}"], rel=1e-4)


def test_a_full_disk_leaves_the_checkpoint_before(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(shards)
    train(load_config(config), shards / "whole", shards / "cache")
    real = checkpoint.write_tensors

    def full(tensors: Any, path: Path) -> None:
        if path.name == "optimiser.safetensors" and (shards / "run" / "checkpoints" / "000002").exists():
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (1000, hard)
            )  # the error comes from where that of a full disk would
            try:
                real(tensors, path)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        else:
            real(tensors, path)

    monkeypatch.setattr("train.checkpoint.write_tensors", full)
    ended = CliRunner().invoke(cli, ["run", config, "--run", str(shards / "run"), "--cache", str(shards / "cache")])
    assert isinstance(ended.exception, InputError)
    assert "step 4 cannot be written: " in str(ended.exception)
    assert "File too large" in str(ended.exception)
    assert str(ended.exception).endswith("make room and run the same command: it goes on from step 2")
    assert checkpoint.steps(shards / "run") == [2]
    assert [path.name for path in (shards / "run" / "checkpoints").iterdir()] == ["000002"]
    monkeypatch.setattr("train.checkpoint.write_tensors", real)
    train(load_config(config), shards / "run", shards / "cache")
    one, other = weights(shards / "whole", "average"), weights(shards / "run", "average")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["weights.safetensors", "average.safetensors", "optimiser.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(
    shards: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = load_config(write_config(shards, optimiser=STEPS))
    cut_off(monkeypatch, config, shards / "run", shards / "cache", after=2)
    assert checkpoint.steps(shards / "run") == [2, 4]
    last = shards / "run" / "checkpoints" / "000004"
    os.truncate(last / name, 40)
    with pytest.raises(
        InputError, match=rf"000004/{name}: is (missing or )?damaged.*; remove the folder that it lies in, and the same"
    ):
        train(config, shards / "run", shards / "cache")
    shutil.rmtree(last)
    assert train(config, shards / "run", shards / "cache") == 4


def check_stopped_at_five(shards: Path, why: str) -> None:
    with pytest.raises(DivergedError, match=rf"step 5: {why}; the last good checkpoint is .*/checkpoints/000004; look"):
        train(load_config(write_config(shards)), shards / "run", shards / "cache")
    assert checkpoint.steps(shards / "run") == [2, 4]


def test_a_loss_that_is_no_number_stops_the_run_by_name(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.step import EncoderStep

    spoil_loss(monkeypatch, EncoderStep, 5)
    check_stopped_at_five(shards, "the loss is nan")


def test_a_gradient_that_is_no_number_stops_the_run_before_it_spoils_the_weights(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.step import EncoderStep

    real = EncoderStep.loss

    def broken(self: EncoderStep, batch: Any) -> Any:
        loss, figures = real(self, batch)
        if batch.step == 5:  # the last, after which there would be no loss to look at
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss, figures

    config = load_config(write_config(shards, optimiser=STEPS))
    with monkeypatch.context() as patched:
        patched.setattr(EncoderStep, "loss", broken)
        with pytest.raises(DivergedError, match=r"step 5: the gradient's norm is nan; the last good .*/000004; look"):
            train(config, shards / "run", shards / "cache")
    assert checkpoint.steps(shards / "run") == [2, 4]
    assert all(bool(value.isfinite().all()) for value in weights(shards / "run").values())
    assert train(config, shards / "run", shards / "cache") == 2


def test_looking_a_step_later_changes_nothing_that_is_kept(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the next step is begun before the last one's loss is read."""
    from train.step import EncoderStep

    config = load_config(write_config(shards, log_every=3, checkpoint_every=4, optimiser={**STEPS, "steps": 9}))
    train(config, shards / "now", shards / "cache")
    with monkeypatch.context() as patched:
        patched.setattr("train.loop.AHEAD", {"cpu": 1, "cuda": 1})
        train(config, shards / "later", shards / "cache")
        assert same_averages(shards / "now", shards / "later")
        told = [
            [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "waiting")} for line in lines]
            for lines in ((shards / run / "metrics.jsonl").read_text().splitlines() for run in ("now", "later"))
        ]
        assert told[0] == told[1] and [line["step"] for line in told[0]] == [3, 6, 9]

        seen = spoil_loss(patched, EncoderStep, 4)
        with pytest.raises(
            DivergedError, match=r"step 4: the loss is nan; the last good checkpoint is .*/000004; look"
        ):
            train(config, shards / "broken", shards / "cache")
        assert seen[-1] == 5 and checkpoint.steps(shards / "broken") == [4]


def test_a_share_that_cannot_be_cut_into_equal_parts_is_refused(shards: Path) -> None:
    config = load_config(write_config(shards, optimiser={**STEPS, "batch": 12, "accumulate": 4}))
    with pytest.raises(InputError, match=r"4 parts do not divide the 6 tiles that each of 2 workers .* multiple of 8"):
        train(config, shards / "run", shards / "cache", team=Team(0, 2))
    with pytest.raises(InputError, match=r"optimiser\.batch: 12 does not divide by 5 workers"):
        train(config, shards / "run", shards / "cache", team=Team(0, 5))
    assert not (shards / "run").exists()


def test_the_watch_goes_on_where_a_run_does(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_config(shards, optimiser=STEPS))
    cut_off(monkeypatch, config, shards / "run", shards / "cache", after=2)
    train(config, shards / "run", shards / "cache")
    state = json.loads((shards / "run" / "checkpoints" / "000006" / "state.json").read_text())
    assert [watch["seen"] for watch in state["also"]["watch"].values()] == [6]


def test_the_rate_warms_up_then_falls_to_a_fiftieth() -> None:
    plan = Optimiser(steps=110, batch=1, rate=1.0, warmup=10)
    rates = [rate_at(plan, step) for step in range(111)]
    assert rates[:11] == pytest.approx([0.1 * (1 + n) for n in range(10)] + [1.0])
    assert rates[60] == pytest.approx(0.51)
    assert rates[110] == pytest.approx(0.02)
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert rate_at(plan.model_copy(update={"schedule": "constant"}), 100) == 1.0


def test_statistics_are_averaged_as_weights_are_and_counters_copied() -> None:
    norm = torch.nn.BatchNorm1d(2)
    ema = Ema(norm, 0.75)
    norm.running_mean.fill_(4.0)
    norm.num_batches_tracked.fill_(7)
    ema.update(norm, 1000)
    assert ema.state["running_mean"].tolist() == [1.0, 1.0]
    assert ema.state["num_batches_tracked"].item() == 7


def test_a_jump_of_ten_deviations_stops_a_run_and_noise_does_not() -> None:
    random = torch.Generator().manual_seed(0)
    watch = Watch()
    for step in range(2000):
        watch.look(step, 1.0 / (1 + step / 50) + 0.05 * torch.randn(1, generator=random).item())
    with pytest.raises(DivergedError, match="step 2000: the loss jumps to 3"):
        watch.look(2000, 3.0)
    young = Watch()
    for step in range(AFTER_STEPS):
        young.look(step, 1.0 if step % 2 else 50.0)


def test_a_jump_stops_the_run_where_it_stands(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.step import EncoderStep

    real = EncoderStep.loss
    monkeypatch.setattr("train.watch.AFTER_STEPS", 3)

    def jumps(self: Any, batch: Any) -> Any:
        loss, figures = real(self, batch)
        return (loss * 1000 if batch.step == 5 else loss), figures

    monkeypatch.setattr(EncoderStep, "loss", jumps)
    check_stopped_at_five(shards, "the loss jumps to .*")


def test_a_log_that_cannot_be_written_is_one_line_and_the_same_command_goes_on(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real = load_config(write_config(shards, log_every=1)), open

    def full(path: Any, *given: Any) -> Any:
        if str(path).endswith("metrics.jsonl") and checkpoint.steps(shards / "run"):
            raise OSError(28, "No space left on device")
        return real(path, *given)

    with monkeypatch.context() as patched:
        patched.setattr("train.metrics.open", full, raising=False)
        with pytest.raises(
            InputError, match=r"metrics\.jsonl: step 3 cannot be noted: No space left on device; make room"
        ):
            train(config, shards / "run", shards / "cache")
    assert train(config, shards / "run", shards / "cache") == config.optimiser.steps - 2


def test_a_config_that_may_change_and_one_that_may_not(shards: Path) -> None:
    train(load_config(write_config(shards, optimiser={**STEPS, "steps": 2})), shards / "run", shards / "cache")
    train(
        load_config(write_config(shards, optimiser={**STEPS, "steps": 2}, keep_last=5)),
        shards / "run",
        shards / "cache",
    )
    ended = CliRunner().invoke(
        cli,
        ["run", write_config(shards, optimiser=STEPS), "--run", str(shards / "run"), "--cache", str(shards / "cache")],
    )
    assert ended.exit_code != 0
    assert "was begun with another config (optimiser." in str(ended.exception)


def test_a_folder_that_is_no_run_is_left_alone(shards: Path) -> None:
    config = load_config(write_config(shards, optimiser=STEPS))
    before = sorted(path.name for path in (shards / "shards").iterdir())
    with pytest.raises(InputError, match=r"shards: holds .* and is no run folder; name a new one"):
        train(config, shards / "shards", shards / "cache")
    assert sorted(path.name for path in (shards / "shards").iterdir()) == before
    (shards / "file").write_text("mine")
    with pytest.raises(InputError, match="file: is a file; name a folder for the run"):
        train(config, shards / "file", shards / "cache")


def test_an_interrupted_run_says_what_is_kept(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.step import EncoderStep

    real, said = EncoderStep.loss, list[str]()

    def stopped(self: Any, batch: Any) -> Any:
        if batch.step == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(EncoderStep, "loss", stopped)
    for every, kept in ((100, 0), (2, 2)):
        config = load_config(write_config(shards, optimiser=STEPS, checkpoint_every=every))
        with pytest.raises(KeyboardInterrupt):
            train(config, shards / f"run-{every}", shards / "cache", said.append)
        assert said[-1] == f"{shards}/run-{every}: {kept} of 6 steps are kept (checkpoint_every: {every})"


def test_a_config_that_failed_before_the_first_checkpoint_may_be_mended(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"shards": str(shards / "shards"), "validation": {"share": 0.25, "every": 2, "tiles": 4}}
    with monkeypatch.context() as patched:
        patched.setattr("train.loop.checkpoint.save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(load_config(write_config(shards, data=data)), shards / "run", shards / "cache")
    assert [line["step"] for line in lines(shards / "run")][:2] == [0, 2]
    train(load_config(write_config(shards, data=data, optimiser=STEPS, seed=3)), shards / "run", shards / "cache")
    assert load_config(str(shards / "run" / "config.yaml")).seed == 3
    assert [line["step"] for line in lines(shards / "run")] == [0, 2, 4, 6]  # the look before the first step once


@pytest.mark.parametrize("classes", [3, 4])  # of four the head has another shape
def test_other_tiles_at_the_same_place_are_no_resume(shards: Path, classes: int) -> None:
    config = load_config(write_config(shards))
    train(config, shards / "run", shards / "cache")
    before = (shards / "run" / "extra.json").read_text()
    write_shard(shards / "shards", tiles=15, classes=classes)
    with pytest.raises(InputError, match="run: the tiles changed since it was begun"):
        train(config, shards / "run", shards / "cache")
    assert (shards / "run" / "extra.json").read_text() == before


def test_a_format_that_the_cpu_has_no_units_for_is_warned_of(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    said: list[str] = []
    config = load_config(write_config(shards, optimiser={**STEPS, "steps": 1, "warmup": 1}, precision="bfloat16"))
    train(config, shards / "run", shards / "cache", said.append)
    assert said == [
        "warning: precision: this CPU (AVX2) only emulates bfloat16, many times slower than float32; write float32"
    ]
