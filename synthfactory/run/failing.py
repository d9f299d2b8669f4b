"""What becomes of a unit that failed: drawn again, and by whom, or set aside; and when a build ends for it.

A unit is at fault where it fails on different workers; a worker, where it fails whatever it is given. Of many workers one may have a full
disk, a wrong clock, an old token or a broken GPU: then others draw its units, and the build goes on.
"""

from __future__ import annotations

import errno
from collections import Counter, defaultdict, deque
from collections.abc import Callable

from synthfactory.run.result import MAX_SET_ASIDE, BuildResult
from synthfactory.run.task import Failed
from synthfactory.spec.errors import InputError

MAX_STRIKES = 3  # exceptions of a unit, by two workers at least where there are two
MAX_ALONE = 6  # of a unit that nobody else has tried
MAX_DEATHS = 5  # of the process that worked on it


class Failures:
    """Counts the failures of units and workers while a build runs."""

    def __init__(self, workers: int, result: BuildResult, say: Callable[[str], None]) -> None:
        self._workers, self._result, self._say = workers, result, say
        self._strikes, self._deaths = defaultdict[int, list[int]](list), Counter[int]()
        self._odd: dict[int, BaseException] = {}  # worker -> what it says of its machine, or of what it was given
        self._in_a_row = 0  # units set aside since one was made
        self._since: list[int] = []  # workers whose units failed since then

    def made(self, worker: int) -> None:
        """A worker has made a unit: nothing is wrong with it."""
        self._in_a_row = 0
        self._since.clear()
        self._odd.pop(worker, None)

    def tries(self, shard: int) -> int:
        """How often a unit has failed."""
        return len(self._strikes[shard]) + self._deaths[shard]

    def failed(self, event: Failed, queue: deque[int]) -> None:
        """Puts the unit at the far end of the queue, or sets it aside. Raises what half of the workers say of their machines, and ends
        (`gave_up`) where several units in a row were set aside.
        """
        shard = event.shard
        where = f" on {event.where}" if event.where else ""
        if _of_machine(event.error):
            assert event.error is not None
            self._odd[event.worker] = event.error
            if 2 * len(self._odd) >= self._workers:
                raise event.error
            self._say(f"shard {shard:06d} goes to another worker: one{where} cannot go on ({event.message})")
            queue.append(shard)
            return
        if event.died:
            self._deaths[shard] += 1
            aside, count = self._deaths[shard] >= MAX_DEATHS, self._deaths[shard]
        else:
            self._since.append(event.worker)
            # A store that takes nothing any more: else every unit would be drawn in vain before one has failed often enough.
            if len(self._since) >= MAX_STRIKES * MAX_SET_ASIDE and 2 * len(set(self._since)) >= self._workers:
                self._result.gave_up = True
            strikes = self._strikes[shard]
            strikes.append(event.worker)
            several = len(set(strikes)) >= min(2, self._workers)
            aside, count = len(strikes) >= (MAX_STRIKES if several else MAX_ALONE), len(strikes)
        what = "its worker ended" if event.died else "it failed"
        if aside:
            self._result.set_aside[shard] = event.message
            self._in_a_row += 1
            self._result.gave_up |= self._in_a_row >= MAX_SET_ASIDE and bool(queue)
            self._say(f"shard {shard:06d} set aside: {what} {count} times, last{where} with {event.message}")
            return
        self._say(f"shard {shard:06d} is drawn again: {what}{where} ({event.message})")
        queue.append(shard)


def _of_machine(error: BaseException | None) -> bool:
    """Whether it is no fault of a unit: a full or read-only disk, or what a user would have to mend."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return full or isinstance(error, InputError)
