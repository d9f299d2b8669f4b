"""Workers of which one cannot load what the others could: the build goes on without it, and asks it again later."""

from __future__ import annotations

from typing import Any

import pytest

from synthfactory.run import ray_pool
from synthfactory.run.ray_pool import RayPool


def test_one_machines_own_fault_does_not_end_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(call: Any) -> str:
        raise ray_pool.ray.exceptions.RayTaskError("ready", "a broken GPU", RuntimeError("a broken GPU"))

    monkeypatch.setattr(ray_pool.ray, "get", fault)
    pool = RayPool.__new__(RayPool)
    pool._device, pool._absent, pool._idle = None, [], []
    with pytest.raises(ray_pool.ray.exceptions.RayTaskError):
        pool._met("call", 0)  # nobody was ready yet: most likely it would fail everywhere
    pool._device = "CPU"
    pool._met("call", 1)
    assert ([number for _, number in pool._absent], pool.free()) == ([1], 0)
