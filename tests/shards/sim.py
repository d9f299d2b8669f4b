"""A small world for the commit protocol: an object store with faults, and actors whose every call is put in a seeded order.

The actors run the real code over the real RemoteStore; only the file system below it is made up. Each call may fail before it
takes effect (503), after (a lost reply), take effect later (a request still under way), store half an object, or be the actor's last
(SIGKILL). Listings may be old. Puts replace atomically, as object stores do.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from synthfactory.shards.remote import RemoteStore

FAULT = 0.02  # of each kind, per call
STALE = 0.15  # of listings


class Crash(BaseException):
    """The process is gone."""


class Broken(AssertionError):
    """An invariant does not hold."""


class Actor:
    def __init__(self, name: str, body: Callable[[], None], crash_at: int | None) -> None:
        self.name, self.body, self.crash_at = name, body, crash_at
        self.steps, self.crashed, self.done = 0, False, False
        self.turn = threading.Lock()
        self.turn.acquire()


class World:
    """Objects, time, faults, and who is next."""

    def __init__(self, seed: int, *, exclusive: bool = True) -> None:
        self.rng = random.Random(seed)
        self.exclusive = exclusive
        self.faulty = True
        self.now = 0
        self.objects: dict[str, bytes] = {}
        self.older: dict[str, bytes] = {}
        self.late: list[Callable[[], None]] = []
        self.committed: dict[str, bytes] = {}  # every commit ever seen, and every object that one names
        self.may_vanish: set[str] = set()  # commits that a clean-up of damage may take back (never change)
        self.broken: str | None = None
        self._main = threading.Lock()
        self._main.acquire()
        self._actor: Actor | None = None

    # scheduling

    def run(self, actors: list[Actor]) -> None:
        threads = [threading.Thread(target=self._life, args=(actor,), daemon=True) for actor in actors]
        for thread in threads:
            thread.start()
        live = list(actors)
        while live:
            self._actor = self.rng.choice(live)
            self._actor.turn.release()
            self._main.acquire()
            self.now += 1
            if self.late and self.rng.random() < 0.05:
                self.late.pop(self.rng.randrange(len(self.late)))()
            if self.rng.random() < 0.1:
                self.older = dict(self.objects)
            live = [actor for actor in live if not actor.done]
        for thread in threads:
            thread.join()
        self._actor = None
        if self.broken:
            raise Broken(self.broken)

    def _life(self, actor: Actor) -> None:
        actor.turn.acquire()
        try:
            actor.body()
        except Crash:
            pass
        except OSError:
            pass  # it gave up after many tries; the driver would hand the unit out again
        except BaseException as error:  # noqa: BLE001
            self.broken = self.broken or f"{actor.name}: {error!r}"
        finally:
            actor.done = True
            self._main.release()

    def step(self) -> Actor | None:
        """Gives the others a turn; returns who is acting."""
        actor = self._actor
        if actor is not None:
            self._main.release()
            actor.turn.acquire()
            actor.steps += 1
        return actor

    def sleep(self, _seconds: float) -> None:
        actor = self.step()
        if actor is not None and actor.crashed:
            raise Crash

    # one call

    def call(self, effect: Callable[[], Any], *, writes: bool = False) -> Any:
        actor = self.step()
        if actor is not None and (actor.crashed or actor.steps == actor.crash_at):
            if writes and not actor.crashed and self.rng.random() < 0.5:
                self._quietly(effect)
            actor.crashed = True
            raise Crash
        chance = self.rng.random() / FAULT if self.faulty else 9.0
        if chance < 1:
            raise OSError(errno.EBUSY, "503")
        if writes and chance < 2:
            self._quietly(effect)
            raise TimeoutError("lost reply")
        if writes and chance < 3:
            self.late.append(lambda: self._quietly(effect))
            raise TimeoutError("still under way")
        return effect()

    def _quietly(self, effect: Callable[[], Any]) -> None:
        with contextlib.suppress(OSError):
            effect()

    def store(self, path: str, data: bytes, mode: str, *, whole: bool = True) -> None:
        if mode == "create" and self.exclusive and path in self.objects:
            raise FileExistsError(path)
        if not whole and path not in self.objects:
            data = data[: len(data) // 2]
        self.objects[path] = data
        self.check(path)

    def remove(self, path: str) -> None:
        self.objects.pop(path, None)
        self.check(path)

    # invariants, after every effect

    def check(self, path: str) -> None:
        standing = self.objects.get(path)
        if (
            path in self.committed
            and standing != self.committed[path]
            and (standing is not None or path not in self.may_vanish)
        ):
            self.broken = self.broken or f"{path} was committed, and has changed or gone"
        if path.startswith("out/commits/") and standing is not None:
            self.committed[path] = standing
            body = json.loads(standing)
            for part in ("tar", "parquet"):
                name = f"out/{body[part]['name']}"
                content = self.objects.get(name)
                if content is None or hashlib.sha256(content).hexdigest() != body[part]["sha256"]:
                    self.broken = self.broken or f"{path} names {name}, which is not there or not whole"
                else:
                    self.committed[name] = content


WORLD: World


class SimFileSystem(AbstractFileSystem):
    """fsspec over the current world."""

    protocol = "sim"

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return WORLD.call(lambda: self._get(path))

    def _get(self, path: str) -> bytes:
        if path not in WORLD.objects:
            raise FileNotFoundError(path)
        return WORLD.objects[path]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"size": len(WORLD.call(lambda: self._get(path))), "type": "file"}

    def find(self, path: str, maxdepth: Any = None, withdirs: Any = None, detail: bool = False, **_: Any) -> Any:
        def listed() -> dict[str, Any]:
            source = WORLD.older if WORLD.faulty and WORLD.rng.random() < STALE else WORLD.objects
            return {
                name: {"type": "file", "size": len(data)}
                for name, data in source.items()
                if name.startswith(path + "/")
            }

        return WORLD.call(listed)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        half = mode == "overwrite" and WORLD.faulty and WORLD.rng.random() < FAULT
        WORLD.call(lambda: WORLD.store(path, value, mode, whole=not half), writes=True)

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **kwargs: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes(), mode)

    def rm_file(self, path: str) -> None:
        WORLD.call(lambda: WORLD.remove(path), writes=True)


fsspec.register_implementation("sim", SimFileSystem, clobber=True)


def enter(world: World) -> World:
    """Makes a world the current one."""
    global WORLD
    WORLD = world
    return world


def sim_store(name: str = "out") -> RemoteStore:
    """The real RemoteStore over the current world; it sleeps in the world's time."""
    return RemoteStore(f"sim://{name}", pause=WORLD.sleep)


def unreferenced(world: World) -> list[str]:
    """Objects below out/ that no commit names, and that are no commit."""
    commits = [path for path in world.objects if path.startswith("out/commits/")]
    bodies = [json.loads(world.objects[path]) for path in commits]
    named = {f"out/{body[part]['name']}" for body in bodies for part in ("tar", "parquet")}
    return [path for path in world.objects if path.startswith("out/") and path not in named.union(commits)]
