"""Low-rank adapters (arXiv 2106.09685): y = W x + (scale / rank) B A x, with W fixed; merged into W at export, so that nothing runs slower.

The adapted layer keeps the names `weight` and `bias`, and adds `lora_a` (rank, in) and `lora_b` (out, rank).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthfactory.spec.errors import InputError


class LoRALinear(nn.Linear):
    """A linear layer whose own weight is fixed and whose adapter learns; at first it does what the layer did."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float, generator: torch.Generator | None) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.requires_grad_(False)
        self.factor = scale / rank
        first = torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
        self.lora_a = nn.Parameter(first)
        self.lora_b = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.factor * F.linear(F.linear(x, self.lora_a), self.lora_b)


def adapt(module: nn.Module, targets: Sequence[str], rank: int, scale: float, generator: torch.Generator | None) -> int:
    """Fixes every weight of the module and puts adapters into its linear layers whose names end in one of `targets`.

    Returns how many there are; InputError where a target fits none.
    """
    module.requires_grad_(False)
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    idle = [target for target in targets if not any(name.endswith(target) for name in linear)]
    if idle:
        raise InputError(
            f"finetune.lora.targets: no linear layer's name ends in {', '.join(idle)}; for example attn.qkv, mlp.fc1"
        )
    chosen = [name for name in linear if name.endswith(tuple(targets))]
    for name in chosen:
        parent, _, last = name.rpartition(".")
        owner = module.get_submodule(parent)
        layer = getattr(owner, last)
        setattr(owner, last, LoRALinear(layer, rank, scale, generator))
    return len(chosen)


def merged(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A state dict with its adapters added to the weights, by the names of the network that was adapted."""
    found = {name: value for name, value in state.items() if not name.endswith((".lora_a", ".lora_b"))}
    for name, a in state.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            weight = found[f"{layer}.weight"]
            change = state[f"{layer}.lora_b"].double() @ a.double() * (scale / a.shape[0])
            found[f"{layer}.weight"] = (weight.double() + change).to(weight.dtype)
    return found
