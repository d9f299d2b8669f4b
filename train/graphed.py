"""A loss and its gradients (and the update, where it is one pass) as one CUDA graph. Small networks launch kernels more slowly than a GPU
works them off: replayed as a whole, they keep it busy. What is computed is the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from train.loader import Batch
from train.place import Figures, Loss

NORM = "gradient_norm"
WARM = 3  # steps that are launched one kernel at a time: what is compiled or chosen at first use must have been


class Graphed:
    """Takes batches of one size of which a loss needs nothing but `positions`, `rows` and `symmetries`."""

    def __init__(
        self,
        loss: Loss,
        leaves: Iterable[Tensor],
        autocast: Callable[[], contextlib.AbstractContextManager[object]],
        device: torch.device,
        move: Callable[[], Tensor] | None = None,
    ) -> None:
        self._loss, self._leaves, self._autocast, self._device, self._move = loss, list(leaves), autocast, device, move
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Tensor | None = None
        self._found: dict[str, Tensor] = {}
        self._begun = 0
        self._aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients are left with the leaves, in place of what was there, and `move` is called, whose norm is returned by the name NORM;
        the loss by the name "", beside its figures.
        """
        given = torch.from_numpy(np.stack([batch.positions, batch.rows, batch.symmetries])).pin_memory()
        if self._inputs is None:
            self._inputs = torch.empty_like(given, device=self._device)
        self._inputs.copy_(given, non_blocking=True)
        if self._begun < WARM:
            self._begun += 1
            return self._apart(batch)
        if self._graph is None:
            self._clear()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._found = self._once(batch)
        self._graph.replay()
        return {name: value.clone() for name, value in self._found.items()}  # the next replay writes over them

    def _apart(self, batch: Batch) -> dict[str, Tensor]:
        """A step on a stream of its own, as capturing asks of what goes before it."""
        here, aside = torch.cuda.current_stream(self._device), self._aside
        aside.wait_stream(here)
        self._clear()
        with torch.cuda.stream(aside):
            found = self._once(batch)
        here.wait_stream(aside)
        return found

    def _once(self, batch: Batch) -> dict[str, Tensor]:
        assert self._inputs is not None
        positions, rows, symmetries = self._inputs
        with self._autocast():
            loss, figures = self._loss(Batch(batch.step, positions, rows, symmetries, batch.images))
        loss.backward()  # type: ignore[no-untyped-call]
        norm = {} if self._move is None else {NORM: self._move()}
        return {"": loss.detach(), **_tensors(figures), **norm}

    def _clear(self) -> None:
        for leaf in self._leaves:
            leaf.grad = None


def _tensors(figures: Figures) -> dict[str, Tensor]:
    return {name: value for name, value in figures.items() if isinstance(value, Tensor)}
