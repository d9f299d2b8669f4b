"""Who works on a run: one process alone, or several that share every batch (torch.distributed) and hold the same weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.loader import Batch, Share
from train.place import Figures, Loss, Place

DTYPES = {"float64": torch.float64}  # of weights; all else is float32, and bfloat16 under autocast


class _Forward(nn.Module):
    """A loss as a module's forward, which is what DistributedDataParallel hooks into."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.inner = module
        self._loss = [loss]

    def forward(self, batch: Batch) -> tuple[Tensor, Figures]:
        return self._loss[0](batch)


@dataclass(frozen=True)
class Team:
    """This process among `world`; alone by default."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's part of every batch."""
        return Share(self.rank, self.world)

    def place(self, precision: str) -> Place:
        """Where weights lie, and in which format."""
        return Place(self.device, DTYPES.get(precision, torch.float32))

    def wrapped(self, module: nn.Module, loss: Loss, *, find_unused: bool) -> Loss:
        """The loss, whose gradients are averaged over the processes where there are several: of the weights that require one now."""
        if self.world == 1:
            return loss
        ids: dict[str, Any] = {"device_ids": [self.device]} if self.device.type == "cuda" else {}
        whole: Loss = nn.parallel.DistributedDataParallel(
            _Forward(module, loss), broadcast_buffers=False, find_unused_parameters=find_unused, **ids
        )
        return whole

    def unsynchronised(self, loss: Loss) -> contextlib.AbstractContextManager[None]:
        """Inside, gradients stay this process's own: for all but the last part of an accumulated batch."""
        found: contextlib.AbstractContextManager[None] = getattr(loss, "no_sync", contextlib.nullcontext)()
        return found

    def mean(self, values: Sequence[float]) -> list[float]:
        """Each value's mean over the processes."""
        if self.world == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found)
        return [float(value) / self.world for value in found.tolist()]

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the processes, of a tensor that no gradient flows through."""
        found = values.detach().clone()
        if self.world > 1:
            dist.all_reduce(found)
        return found

    def barrier(self) -> None:
        """Waits for all."""
        if self.world > 1:
            dist.barrier()

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """The leading process goes first: what it leaves in the cache is there for the others. Where it fails, they do not wait."""
        if not self.leads and not self._told(True):
            raise RuntimeError("the leading worker failed")
        done = False
        try:
            yield
            done = True
        finally:
            if self.leads:
                self._told(done)

    def _told(self, well: bool) -> bool:
        """Whether all went well with the leading process: it says so, the others hear it."""
        if self.world == 1:
            return well
        flag = torch.tensor([float(well)], device=self.device)
        dist.broadcast(flag, 0)
        return bool(flag.item())
