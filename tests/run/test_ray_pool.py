"""Workers of which one cannot load what the others could: the build goes on without it, and asks it again later."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from synthfactory.run import ray_pool
from synthfactory.run.ray_pool import RayPool
from synthfactory.run.task import Failed
from synthfactory.spec.errors import InputError


def a_pool(count: int, said: list[str]) -> RayPool:
    """A pool without Ray, whose workers have not answered yet."""
    pool = RayPool.__new__(RayPool)
    pool._device, pool._absent, pool._idle, pool._busy, pool._deaths = None, [], [], {}, Counter()
    pool._count, pool._refused, pool._places, pool._say = count, {}, {}, said.append
    pool._answered, pool._last_answer, pool._told_pending, pool._began = set(), 0.0, False, 0.0
    pool._faults, pool._on_cluster = Counter(), True
    return pool


@pytest.mark.parametrize("cause", [RuntimeError("a broken GPU"), InputError("model: differs")])
def test_one_machines_own_fault_does_not_end_the_build(monkeypatch: pytest.MonkeyPatch, cause: Exception) -> None:
    """It answers first, since it loads nothing; the others come later."""
    said, answers = list[str](), iter([cause, ("CPU", "node-2"), cause])

    def answer(call: Any) -> Any:
        given = next(answers)
        if isinstance(given, Exception):
            raise ray_pool.ray.exceptions.RayTaskError("ready", "trace", given)
        return given

    monkeypatch.setattr(ray_pool.ray, "get", answer)
    pool = a_pool(3, said)
    pool._waking = {}
    pool._met("call", 0)
    pool._met("call", 1)
    pool._check_first()
    assert ([number for _, number in pool._absent], pool.free(), pool.workers) == ([0], 1, 3)
    pool._last_answer -= ray_pool.FAULT_SEC
    assert pool.workers == 2, "the third may never start"
    assert len(said) == 1 and said[0].startswith("worker 1 of 3 cannot work: ") and str(cause) in said[0]
    pool._met("call", 0)
    assert len(said) == 1, "said once"


@pytest.mark.parametrize("started", [2, 1])
def test_what_all_who_answer_refuse_ends_the_build(monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    """Also where Ray has no place for the other, who never answers."""
    clock = [0.0]
    monkeypatch.setattr(ray_pool.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(RayPool, "close", lambda self: None)
    pool = a_pool(2, [])
    pool._waking = {object(): 1}

    def wake(timeout_sec: float) -> None:
        clock[0] += timeout_sec
        for number in range(started):
            pool._refused.setdefault(number, InputError("model: differs"))
            pool._answer(number)

    monkeypatch.setattr(pool, "_wake", wake)
    with pytest.raises(InputError, match="model: differs"):
        pool._check_first()
    assert clock[0] < (1 if started == 2 else ray_pool.FAULT_SEC + 2)


def test_a_worker_whose_unit_raised_gets_a_new_process_and_waits_longer_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, killed = [0.0], list[object]()
    monkeypatch.setattr(ray_pool.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ray_pool.ray, "kill", lambda actor, no_restart: killed.append((actor, no_restart)))
    broken = ray_pool.ray.exceptions.RayTaskError("run", "trace", RuntimeError("CUDA error"))

    def fails(call: Any) -> str:
        raise broken

    monkeypatch.setattr(ray_pool.ray, "get", fails)
    pool = a_pool(8, [])
    pool._actors, pool._places = {5: "actor"}, {5: "10.0.0.7"}  # type: ignore[dict-item]
    waits = []
    for shard in range(3):
        pool._busy = {"call": (5, shard)}
        event = pool._ended("call")
        waits.append(pool._absent.pop()[0])
    assert isinstance(event, Failed) and (event.worker, event.where) == (5, "10.0.0.7, worker 6")
    assert waits == [ray_pool.WAKE_SEC, ray_pool.FAULT_SEC, 2 * ray_pool.FAULT_SEC]
    assert killed == [("actor", False)] * 3 and not pool._idle


def test_workers_that_end_while_they_load_are_told_of_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [0.0], list[str]()
    monkeypatch.setattr(ray_pool.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ray_pool.time, "sleep", lambda sec: clock.__setitem__(0, clock[0] + sec))
    monkeypatch.setattr(ray_pool.ray, "wait", lambda calls, **how: (list(calls), []))
    monkeypatch.setattr(ray_pool.ray, "shutdown", lambda: None)

    def dies(call: Any) -> str:
        raise ray_pool.ray.exceptions.ActorDiedError()

    class Ready:
        def remote(self) -> object:
            return object()

    class Actor:
        ready = Ready()

    monkeypatch.setattr(ray_pool.ray, "get", dies)
    monkeypatch.setattr(RayPool, "close", lambda self: None)
    pool = a_pool(2, said)
    pool._actors, pool._waking = {0: Actor()}, {object(): 0}  # type: ignore[dict-item]
    pool._actors[1] = Actor()  # type: ignore[assignment]
    pool._waking[object()] = 1
    with pytest.raises(
        InputError, match=r"workers end while they load the model \(ActorDiedError\); memory may be short"
    ):
        pool._check_first()
    assert len(said) == 1 and "no worker is ready yet (ActorDiedError: memory may be short)" in said[0]
    assert ray_pool.LOAD_SEC <= clock[0] < ray_pool.LOAD_SEC + 60


def test_bad_input_that_the_probe_meets_on_a_node_is_the_message_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = ray_pool.ray.exceptions.RayTaskError("probe", "trace", InputError("model: nowhere: no such folder"))

    class Remote:
        def remote(self, spec: Any) -> None:
            return None

    def fails(call: Any) -> int:
        raise problem.as_instanceof_cause()

    monkeypatch.setattr(ray_pool, "start_ray", lambda *given: None)
    monkeypatch.setattr(ray_pool.ray, "cluster_resources", dict)
    monkeypatch.setattr(ray_pool.ray, "remote", lambda **how: lambda call: Remote())
    monkeypatch.setattr(ray_pool.ray, "get", fails)
    with pytest.raises(InputError) as told:
        ray_pool.probe_on_ray(None, "auto")  # type: ignore[arg-type]
    assert str(told.value) == "model: nowhere: no such folder"
