"""Embedding on Ray where workers die: Ray itself is stood in for, with its own exceptions; units are real in name only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from synthfactory.run import ray_embed
from synthfactory.run.ray_embed import RayEmbedPool


class Unit:
    """What a message asks of a folder of tiles."""

    def where(self, row: int) -> str:
        return "tiles/a/1.png"


class Actor:
    """Dies at its first `deaths` units, and is away for some questions after each."""

    def __init__(self, deaths: int, away: int) -> None:
        self.deaths, self.away, self.silent, self.asked = deaths, away, 0, 0
        self.run, self.ready = Method(self._run), Method(self._ready)
        self.done: list[Any] = []

    def _run(self, unit: Any) -> str:
        if self.silent:
            raise ray_embed.ray.exceptions.ActorUnavailableError("restarting", None)
        if self.deaths:
            self.deaths, self.silent = self.deaths - 1, self.away
            raise ray_embed.ray.exceptions.ActorDiedError()
        self.done.append(unit)
        return f"of {len(self.done)}"

    def _ready(self) -> None:
        self.asked += 1
        if self.silent:
            self.silent -= 1
            raise ray_embed.ray.exceptions.ActorUnavailableError("restarting", None)


class Method:
    """`.remote` gives a call that runs when it is got."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *arguments: Any) -> Callable[[], Any]:
        return lambda: self._call(*arguments)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RayEmbedPool]:
    clock = [0.0]
    monkeypatch.setattr(ray_embed.ray, "get", lambda call: call())
    monkeypatch.setattr(ray_embed.ray, "wait", lambda calls, **how: (calls[:1], calls[1:]))
    monkeypatch.setattr(ray_embed.ray, "kill", lambda actor, no_restart: None)
    monkeypatch.setattr(ray_embed.ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_embed.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ray_embed.time, "sleep", lambda sec: clock.__setitem__(0, clock[0] + sec))

    def made(*actors: Actor) -> RayEmbedPool:
        found = RayEmbedPool.__new__(RayEmbedPool)
        found._actors = list(actors)
        return found

    return made


def test_a_worker_that_died_gets_no_unit_until_it_answers(pool: Callable[..., RayEmbedPool]) -> None:
    broken, fine = Actor(deaths=1, away=20), Actor(0, 0)
    done = dict(pool(fine, broken).run([Unit() for _ in range(8)]))  # type: ignore[misc]
    assert sorted(done) == list(range(8))
    assert broken.asked <= 1, "a second has not passed for those who work"
    alone = Actor(deaths=2, away=20)
    assert sorted(dict(pool(alone).run([Unit() for _ in range(3)]))) == [0, 1, 2]  # type: ignore[misc]


def test_a_unit_whose_workers_always_end_is_named(pool: Callable[..., RayEmbedPool]) -> None:
    with pytest.raises(
        OSError, match=r"workers of tiles/a/1\.png and its neighbours ended 5 times, last with ActorDiedError"
    ):
        list(pool(Actor(deaths=9, away=2)).run([Unit()]))  # type: ignore[list-item]


def test_workers_that_never_come_back_end_the_run(pool: Callable[..., RayEmbedPool]) -> None:
    with pytest.raises(OSError, match="no worker has come back for ten minutes"):
        list(pool(Actor(deaths=1, away=10**9)).run([Unit()]))  # type: ignore[list-item]
