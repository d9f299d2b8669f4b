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

MAX_STRIKES = 3  # exceptions of a unit, with two workers at least where there are two
MAX_DEATHS = 5  # of the process that worked on it, likewise; twice as often where nobody else has tried the unit


class Failures:
    """Counts the failures of units and workers while a build runs. `workers` says how many there are by now."""

    def __init__(self, workers: Callable[[], int], result: BuildResult, say: Callable[[str], None]) -> None:
        self._workers, self._result, self._say = workers, result, say
        self._strikes, self._deaths, self._refusals = (defaultdict[int, list[int]](list) for _ in range(3))
        self._odd: dict[int, BaseException] = {}  # worker -> what it says of its machine, or of what it was given
        self._in_a_row = 0  # units set aside since one was made
        self._since = Counter[int]()  # workers whose units failed since then, and how many did

    def made(self, worker: int) -> None:
        """A worker has made a unit: nothing is wrong with it."""
        self._in_a_row = 0
        self._since.clear()
        self._odd.pop(worker, None)

    def failed(self, event: Failed, queue: deque[int]) -> None:
        """Puts the unit at the far end of the queue, or sets it aside. Raises what half of the workers say of their machines, and ends
        (`gave_up`) where several units in a row were set aside, or where half of the workers fail and go on failing.
        """
        shard, workers = event.shard, max(1, self._workers())
        where = f" on {event.where}" if event.where else ""
        what = "its worker ended" if event.died else "it failed"
        if _of_machine(event.error):
            assert event.error is not None
            self._odd[event.worker] = event.error
            if 2 * len(self._odd) >= workers:
                raise event.error
            tries, enough = self._refusals[shard], MAX_STRIKES
            self._say(f"shard {shard:06d} goes to another worker: one{where} cannot go on ({event.message})")
        else:
            self._since[event.worker] += not event.died
            # A store that takes nothing any more: else every unit would be drawn in vain before one has failed often enough.
            often = (
                max(self._since.values(), default=0) >= MAX_STRIKES
                and self._since.total() >= MAX_STRIKES * MAX_SET_ASIDE
            )
            self._result.gave_up |= often and 2 * len(self._since) >= workers
            tries, enough = (self._deaths[shard], MAX_DEATHS) if event.died else (self._strikes[shard], MAX_STRIKES)
        tries.append(event.worker)
        several = len(set(tries)) >= min(2, workers)
        if len(tries) < (enough if several else 2 * enough):
            if not _of_machine(event.error):
                self._say(f"shard {shard:06d} is drawn again: {what}{where} ({event.message})")
            queue.append(shard)
            return
        self._result.set_aside[shard] = event.message
        self._in_a_row += 1
        self._result.gave_up |= self._in_a_row >= MAX_SET_ASIDE and bool(queue)
        self._say(f"shard {shard:06d} set aside: {what} {len(tries)} times, last{where} with {event.message}")


def _of_machine(error: BaseException | None) -> bool:
    """Whether it is no fault of a unit: a full or read-only disk, or what a user would have to mend."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return full or isinstance(error, InputError)
