"""--local: the one worker lives in this process, and waiting means working. No Ray."""

from __future__ import annotations

from synthfactory.model.formats import slow_format
from synthfactory.model.weights import default_device
from synthfactory.run.task import Done, Failed, Setup, Task, Tick
from synthfactory.run.worker import Worker
from synthfactory.spec.errors import InputError


class LocalPool:
    """One unit at a time, in this process; an interruption ends it at once."""

    def __init__(self, setup: Setup, tick: Tick) -> None:
        self._worker = Worker(setup)
        self._slow = slow_format(setup.spec.execution.dtype, default_device())
        self._tick = tick
        self._waiting: list[Task] = []

    @property
    def workers(self) -> int:
        """One."""
        return 1

    def describe(self) -> str:
        """Who works, in words."""
        where = f"this process, without Ray, on {self._worker.device_name}"
        return where if self._slow is None else f"{where}; {self._slow}"

    def free(self) -> int:
        """One unit at a time."""
        return 1 - len(self._waiting)

    def submit(self, task: Task) -> None:
        """Keeps the unit until `wait`."""
        self._waiting.append(task)

    def wait(self, timeout_sec: float) -> list[Done | Failed]:
        """Works through the unit that was handed out."""
        ended: list[Done | Failed] = []
        while self._waiting:
            task = self._waiting.pop()
            try:
                ended.append(Done(self._worker.run(task, self._tick)))
            except InputError:
                raise
            except Exception as error:  # noqa: BLE001  the driver counts strikes; whatever a unit raises is its own
                ended.append(Failed(task.shard, f"{type(error).__name__}: {error}", died=False, error=error))
        return ended

    def close(self) -> None:
        """Nothing to end."""
