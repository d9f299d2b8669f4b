"""Bytes that a block of SiT-XL/2 moves in a training step, plain and lean: python tests/benchmarks/traffic.py [--batch 64]

torch's compiler counts what each of its kernels reads and writes; this needs no GPU, but counts the kernels that it makes for the CPU.
Counted at two small batches and carried on in a straight line to the batch asked for, in bfloat16 tensors of (batch, 196, 1152). Attention
is left out: its kernel is another on a GPU. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import torch
from torch._inductor import compile_fx, config, metrics
from torch._inductor.scheduler import ExternKernelSchedulerNode

from synthfactory.model.sit import Block, SiTConfig
from train.lean import Copies

SMALL = (2, 4)
SIZES = SiTConfig()
TOKENS = (SIZES.latent_size // SIZES.patch_size) ** 2


def moved(batch: int, *, lean: bool) -> dict[str, float]:
    """Bytes of the products of matrices, and of what lies between them, forward and backward."""
    torch._dynamo.reset()
    metrics.reset()
    block = Block(SIZES).train()
    if lean:
        Copies(block)
    block.compile()
    flows = torch.bfloat16 if lean else torch.float32
    x = torch.randn(batch, TOKENS, SIZES.width, dtype=flows, requires_grad=True)
    condition = torch.randn(batch, SIZES.width, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = block(x, condition)
    found.backward(torch.randn_like(found))
    total = {"products": 0.0, "between": 0.0}
    for node, numbers in metrics.nodes_num_elem:  # of four bytes each
        kinds = {str(origin.target) for each in node.get_nodes() for origin in each.node.origins}
        if not any("attention" in kind for kind in kinds):
            total["products" if isinstance(node, ExternKernelSchedulerNode) else "between"] += 4 * numbers
    return total


def main() -> None:
    """Prints the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--batch", type=int, default=64)
    given = options.parse_args()
    config.force_disable_caches = True  # what comes from a cache is not counted
    compile_fx.inductor_metrics_log = quiet = logging.getLogger("counted")  # it counts where it would tell
    quiet.setLevel(logging.INFO)
    quiet.propagate = False
    quiet.addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore")
    tensor = given.batch * TOKENS * SIZES.width * 2
    print(f"{'tensors moved':<14}{'between':>9}{'products':>10}")
    for lean in (False, True):
        low, high = (moved(batch, lean=lean) for batch in SMALL)
        line = {}
        for kind in low:
            slope = (high[kind] - low[kind]) / (SMALL[1] - SMALL[0])
            line[kind] = (low[kind] + slope * (given.batch - SMALL[0])) / tensor
        print(f"{'lean' if lean else 'plain':<14}{line['between']:>9.1f}{line['products']:>10.1f}", flush=True)


if __name__ == "__main__":
    main()
