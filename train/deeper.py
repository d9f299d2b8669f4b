"""A SiT with more blocks that draws what it drew before: depth is added to what has been learnt.

Some blocks are doubled. The copy stands after its original with closed gates (adaLN-Zero), so that it passes on what it gets; its attention
and MLP are the original's, so that its gates learn at the first step (the expansion of LLaMA Pro, arXiv 2401.02415, with the gates in the
place of its output weights).
"""

from __future__ import annotations

import torch

from synthfactory.model.sit import SiT, SiTConfig, sit_from_dict
from synthfactory.spec.errors import InputError


def deeper_config(config: SiTConfig, depth: int | None, name: str) -> SiTConfig:
    """Of the deeper SiT, or of the same where `depth` is None. InputError where that is less than it has. `name`: of the model."""
    if depth is None:
        return config
    if depth < config.depth:
        raise InputError(f"finetune.depth: {name} has {config.depth} blocks; write as many or more, or leave it out")
    after = config.projection_depth
    if after is not None and after <= config.depth:  # read where the same features come out: behind the copies
        after = max(at for at, original in enumerate(_originals(config.depth, depth)) if original == after - 1) + 1
    return config.model_copy(update={"depth": depth, "projection_depth": after})


@torch.no_grad()
def deepened(sit: SiT, config: SiTConfig) -> SiT:
    """A SiT of this config (of `deeper_config`), float32 on the CPU, which draws what `sit` draws."""
    if config == sit.config:
        return sit
    found, state, seen = sit_from_dict(config.model_dump()), sit.state_dict(), set[int]()
    deep = {name: value for name, value in state.items() if not name.startswith("blocks.")}
    for at, original in enumerate(_originals(sit.config.depth, config.depth)):
        for name, value in sit.blocks[original].state_dict().items():
            deep[f"blocks.{at}.{name}"] = value.clone()
        if original in seen:
            for kind in ("weight", "bias"):
                gates = deep[f"blocks.{at}.adaLN_modulation.1.{kind}"].unflatten(0, (6, -1))
                gates[2] = gates[5] = 0  # shift, scale and gate of attention, then of the MLP
        seen.add(original)
    found.load_state_dict(deep)
    return found.train(sit.training)


def check_gates(sit: SiT, before: int) -> None:
    """InputError where a SiT that had `before` blocks leaves out of what learns the gates of its copies: they would stay closed."""
    if before < len(sit.blocks) and not all(
        weight.requires_grad
        for name, weight in sit.named_parameters()
        if ".adaLN_modulation." in name and "blocks." in name
    ):
        raise InputError(
            "finetune.parts: leaves out gates of blocks, and those that finetune.depth adds learn nothing behind closed ones; "
            "add 'blocks.*.adaLN_modulation.*'"
        )


def _originals(shallow: int, deep: int) -> list[int]:
    """Which block each of the deep ones is of: copies are spread evenly, each right behind its original."""
    return [at * shallow // deep for at in range(deep)]
