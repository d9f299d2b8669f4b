"""A SiT that grows: it draws the same until its copies have learnt, and the export is a deeper model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_making import config, make_base

from synthfactory.model.folder import open_model
from synthfactory.model.sit import SiT, SiTConfig
from synthfactory.model.weights import load_model
from synthfactory.spec.errors import InputError
from train.config import load_config
from train.deeper import deepened, deeper_config
from train.export import export
from train.loop import train
from train.plan import plan


def sit_of(depth: int, reads: int | None) -> SiT:
    """With gates that let something through."""
    sizes = {
        "latent_size": 8,
        "width": 16,
        "heads": 2,
        "condition_width": 6,
        "projection_hidden": 8,
        "projection_width": 6,
    }
    sit = SiT(SiTConfig(**sizes, depth=depth, projection_depth=reads))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in sit.parameters():
            weight.copy_(0.3 * torch.randn_like(weight))
    return sit


@pytest.mark.parametrize(("before", "after", "reads"), [(2, 3, 1), (3, 8, 2), (4, 4, 4), (3, 5, None)])
def test_a_deeper_network_draws_and_aligns_as_before(before: int, after: int, reads: int | None) -> None:
    sit = sit_of(before, reads)
    deep = deepened(sit, deeper_config(sit.config, after, "it"))
    assert len(deep.blocks) == after
    inputs = torch.randn(3, 4, 8, 8), torch.rand(3), torch.randn(3, 6)
    for old, new in zip(sit(*inputs, project=reads is not None), deep(*inputs, project=reads is not None), strict=True):
        assert (old is None and new is None) or torch.equal(old, new)


def test_every_copy_learns_from_the_first_step_on() -> None:
    sit = sit_of(2, None)
    deep = deepened(sit, deeper_config(sit.config, 4, "it"))
    deep(torch.randn(3, 4, 8, 8), torch.rand(3), torch.randn(3, 6))[0].square().mean().backward()
    for block in deep.blocks:
        gradient = block.adaLN_modulation[1].weight.grad.unflatten(0, (6, -1))  # type: ignore[union-attr, operator]
        assert all(gradient[gate].abs().max() > 0 for gate in (2, 5))


def test_the_export_is_a_deeper_model(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    before = load_model(open_model(str(base)))
    depth = before.sit.config.depth + 2
    path = config(tmp_path, base, finetune={"depth": depth})
    lines = plan(load_config(path), tmp_path / "cache")
    train(load_config(path), tmp_path / "run", tmp_path / "cache")
    out = export(tmp_path / "run", tmp_path / "tuned", model_id="tuned", revision="1")
    after = load_model(open_model(str(out)))
    assert after.sit.config.depth == depth == len(after.sit.blocks)
    count = sum(weight.numel() for weight in after.sit.parameters())
    assert any(line.startswith("sit ") and f"{count / 1e6:.2f}M parameters" in line for line in lines)
    assert not torch.equal(after.sit.blocks[-1].attn.qkv.weight, before.sit.blocks[-1].attn.qkv.weight)  # type: ignore[union-attr, arg-type]
    assert train(load_config(path), tmp_path / "run", tmp_path / "cache") == 0  # the same command, once it is done


def test_what_cannot_grow_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    shallow = load_config(config(tmp_path, base, finetune={"depth": 1}))
    has = load_model(open_model(str(base))).sit.config.depth
    assert has > 1
    for work in (
        lambda: plan(shallow, tmp_path / "cache"),
        lambda: train(shallow, tmp_path / "run", tmp_path / "cache"),
    ):
        with pytest.raises(InputError, match=rf"finetune.depth: .* has {has} blocks; write as many or more"):
            work()
    closed = load_config(config(tmp_path, base, finetune={"depth": has + 1, "parts": ["blocks.*.attn.*"]}))
    for work in (lambda: plan(closed, tmp_path / "cache"), lambda: train(closed, tmp_path / "run", tmp_path / "cache")):
        with pytest.raises(InputError, match=r"finetune.parts: leaves out gates of blocks"):
            work()
    for changes in ({"mode": "vae", "finetune": {"depth": 9}}, {"finetune": {"depth": 9, "lora": {"rank": 2}}}):
        with pytest.raises(InputError, match=r"finetune.depth: adds blocks to a base"):
            load_config(config(tmp_path, base, **changes))
