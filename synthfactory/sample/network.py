"""The velocity network made ready for sampling: number format, what is constant over a batch computed once, compilation.

float32 is the network as it is. bfloat16 and float16 hold the weights of linear layers and convolutions in that format and run them
in it; the residual stream, norms and the solver's state stay float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from synthfactory.model.sit import SiT
from synthfactory.sample.solvers import guided, is_guided
from synthfactory.spec.sampler import Guidance

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MOST_TIMES = 4096  # steps whose embeddings are kept


class Network:
    """A SiT on its device. The module that is passed in is converted in place."""

    def __init__(self, sit: SiT, dtype: torch.dtype, *, compiled: bool = False) -> None:
        self.sit = sit
        self.device = sit.pos_embed.device
        self.dtype = dtype
        self.compiled = compiled
        if dtype != torch.float32:
            for module in sit.blocks.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(dtype)
        # reduce-overhead replays each shape as one CUDA graph; on a CPU the default mode fuses what it can.
        cuda = self.device.type == "cuda"
        forward: Callable[..., Any] = sit.at
        if compiled:
            forward = torch.compile(sit.at, mode="reduce-overhead" if cuda else "default", dynamic=False)
        self._forward = forward
        self._graphs = compiled and cuda
        self._times: dict[float, Tensor] = {}

    def _time(self, t: float) -> Tensor:
        """(1, D): the same for every batch that is drawn with these steps."""
        if t not in self._times:
            if len(self._times) >= MOST_TIMES:  # of training, which may draw from anywhere
                self._times.clear()
            self._times[t] = self.sit.t_embedder(torch.full((1,), t, device=self.device))
        return self._times[t]

    def velocity(
        self, conditions_BE: Tensor | None, guidance: Guidance, rows: int | None = None
    ) -> Callable[[Tensor, float], Tensor]:
        """(x (B, C, H, W) float32, t) -> guided velocity, float32, for one batch of conditions, float32 (B, E).

        None stands for the null condition in every one of `rows` rows, which guidance cannot change.

        Where t is guided, both halves go through the network as one batch of 2 B rows; elsewhere the conditional half alone.
        """
        if conditions_BE is not None:
            rows = len(conditions_BE)
        assert rows is not None
        null = self.sit.y_embedder.null.expand(rows, -1)
        embedded = null if conditions_BE is None else self.sit.y_embedder(conditions_BE)
        doubled = torch.cat([embedded, null.to(embedded.dtype)])

        def found(x: Tensor, t: float) -> Tensor:
            if not is_guided(guidance, t):
                return self._run(x, self._time(t) + embedded)
            both = self._run(torch.cat([x, x]), self._time(t) + doubled)
            return guided(both[:rows], both[rows:], guidance.scale)

        return found

    def _run(self, x: Tensor, c_BD: Tensor) -> Tensor:
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out: Tensor = self._forward(x, c_BD)[0]
        # A replayed graph writes its next result over this one.
        return out.float().clone() if self._graphs else out.float()
