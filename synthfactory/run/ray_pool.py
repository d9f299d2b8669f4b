"""Workers as Ray Core actors, on this machine or on a cluster.

Actors restart for ever (max_restarts=-1) and never repeat a call by themselves (max_task_retries=0): the driver hands a lost unit
out again, and counts. A worker whose unit raised gets a new process, since what a GPU raises once it may raise for ever, and waits the
longer the more of its units failed in a row. Weights go by path; a task carries the conditions of its own unit only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray 2.60 warns at every start
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in cli.py, in the worker's own process: before torch is loaded

import ray
import ray.exceptions

from synthfactory.run.probe import probe_batch
from synthfactory.run.task import Done, Failed, Setup, Task, Tick, UnitResult
from synthfactory.run.worker import ChangedError, Worker
from synthfactory.spec.errors import InputError
from synthfactory.spec.schema import Spec

POLL_SEC = 0.5
FAULT_SEC = 60.0  # before a worker that could not load what others could, or failed twice in a row, is asked again
MOST_FAULT_SEC = 900.0
LOAD_SEC = 600.0  # in which one worker must have loaded the model, where every one ended MOST_ENDED times while it did
MOST_ENDED = 3
WAKE_SEC = 1.0  # between questions to a worker that is being restarted
REPORT_SEC = 2.0


class _Actor:
    """One worker in a process of its own. Built at the first call, so that what is wrong comes back as an exception."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._worker: Worker | None = None
        self._drawn = self._rejected = 0

    def _count(self, drawn: int, rejected: int) -> None:
        self._drawn += drawn
        self._rejected += rejected

    def ready(self) -> tuple[str, str]:
        """Loads the model; returns the names of the device and of the node."""
        if self._worker is None:
            self._worker = Worker(self._setup)
        return self._worker.device_name, str(ray.util.get_node_ip_address())

    def run(self, task: Task) -> UnitResult:
        """Works through one unit."""
        self.ready()
        assert self._worker is not None
        return self._worker.run(task, self._count)

    def progress(self) -> tuple[int, int]:
        """(candidates, rejected) since this process began; answered beside a running unit."""
        return self._drawn, self._rejected


def start_ray(address: str | None, workers: int) -> None:
    """Connects to a cluster, or starts Ray on this machine, on loopback alone. InputError where none answers or starts."""
    heeded = signal.getsignal(signal.SIGTERM)
    try:
        _init(address, workers)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, heeded)  # Ray takes it for itself, and would end this process without a word


def _init(address: str | None, workers: int) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "ignore_reinit_error": True}
    if address is None:
        try:
            ray.init(address="local", num_cpus=workers, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"Ray does not start on this machine ({(str(error) or type(error).__name__).splitlines()[0]}); it needs a writable home "
                "directory: set HOME to one, or do without Ray (--local; synthfactory-train: no --workers)"
            ) from None
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({str(error).splitlines()[0]}); start one with `ray start --head`"
        ) from None


def probe_on_ray(spec: Spec, address: str) -> int:
    """probe_batch on a worker's kind of device: the machine that drives a build may have no GPU."""
    start_ray(address, 0)
    gpus = min(1, int(ray.cluster_resources().get("GPU", 0)))
    try:
        return int(ray.get(ray.remote(num_gpus=gpus)(probe_batch).remote(spec)))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise


def try_ray() -> str:
    """Starts Ray on this machine and ends it; returns its name and version. Raises what Ray raises where it does not start."""
    start_ray(None, 1)
    ray.shutdown()
    return f"Ray {ray.__version__}"


class RayPool:
    """One actor per GPU where the cluster has GPUs, else per `threads` CPU cores."""

    def __init__(
        self,
        setup: Setup,
        tick: Tick,
        *,
        workers: int | None,
        threads: int,
        address: str | None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._tick, self._say = tick, say
        local_workers = workers or max(1, (os.cpu_count() or 1) // threads)
        start_ray(address, local_workers if address is None else 0)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self._count = (
            workers or gpus or (local_workers if address is None else max(1, int(resources.get("CPU", 1)) // threads))
        )
        cpus = 1 if address is None else threads
        kind = ray.remote(
            # On a cluster whole GPUs: where there are fewer than workers yet, more may join.
            num_gpus=(1.0 if address else min(1.0, gpus / self._count)) if gpus else 0,
            num_cpus=0 if gpus else cpus,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=2,  # the second thread answers progress()
        )(_Actor)
        self._where = f"Ray at {address}" if address else "Ray on this machine"
        self._on_cluster = address is not None
        self._began, self._told_pending = time.monotonic(), False
        self._places: dict[int, str] = {}  # worker -> node, of those that have been ready
        self._refused: dict[int, Exception] = {}  # what workers say that could not load
        self._answered = set[int]()  # workers that have loaded, or refused
        self._last_answer = time.monotonic()  # when one of them did so first
        self._faults = Counter[int]()  # units of a worker that failed in a row
        self._actors = {number: kind.remote(setup) for number in range(self._count)}
        self._seen = dict.fromkeys(self._actors, (0, 0))
        self._idle: list[int] = []
        self._busy: dict[Any, tuple[int, int]] = {}  # call -> (actor, shard)
        self._waking = {actor.ready.remote(): number for number, actor in self._actors.items()}
        self._absent: list[tuple[float, int]] = []  # (when to ask again, actor) of those that are being restarted
        self._reported = time.monotonic()
        self._check_first()

    def _check_first(self) -> None:
        """One worker loads the model before any unit goes out, so that bad input ends the build with one message."""
        self._device: str | None = None  # of the workers that have been ready
        self._lost = ""  # how a worker ended last
        self._deaths = Counter[int]()
        began, told = time.monotonic(), False
        try:
            while not self._idle and (self._waking or self._absent):
                self._wake(POLL_SEC)
                silent = time.monotonic() - self._last_answer > FAULT_SEC
                if self._refused and not self._idle and (len(self._refused) >= self._count or silent):
                    raise next(iter(self._refused.values())) from None  # nobody else comes, and nobody can
                waited = time.monotonic() - began
                if waited > LOAD_SEC and min(self._deaths[number] for number in self._actors) >= MOST_ENDED:
                    raise InputError(
                        f"workers end while they load the model ({self._lost}); memory may be short for so many: name fewer --workers"
                    )
                if waited > FAULT_SEC and not told:
                    told = True
                    why = f" ({self._lost}: memory may be short)" if self._lost else ""
                    self._say(
                        f"no worker is ready yet{why}; waiting for one (Ctrl-C leaves a state that the same command goes on from)"
                    )
        except BaseException:
            self.close()
            raise
        for number, error in self._refused.items():
            self._say_absent(number, str(getattr(error, "cause", None) or error))

    def _answer(self, number: int) -> None:
        if number not in self._answered:
            self._answered.add(number)
            self._last_answer = time.monotonic()

    def _say_absent(self, number: int, why: str) -> None:
        self._say(f"worker {number + 1} of {self._count} cannot work: {why}; it is asked again now and then")

    @property
    def workers(self) -> int:
        """All while they load; then those that have answered, since others may never start."""
        loading = time.monotonic() - self._last_answer < FAULT_SEC
        return self._count if loading else max(1, len(self._answered))

    def _wake(self, timeout_sec: float) -> None:
        """Notes the workers that are ready now. One that is being restarted is asked again, and given nothing meanwhile."""
        for due, number in [*self._absent]:
            if time.monotonic() >= due:
                self._absent.remove((due, number))
                self._waking[self._actors[number].ready.remote()] = number
        if not self._waking:
            time.sleep(timeout_sec)
            return
        done, _ = ray.wait(list(self._waking), num_returns=len(self._waking), timeout=timeout_sec)
        for call in done:
            self._met(call, self._waking.pop(call))
        pending = [number for number in self._waking.values() if number not in self._places]
        if (
            pending
            and self._device is not None
            and not self._told_pending
            and time.monotonic() - self._began > FAULT_SEC
        ):
            self._told_pending = True
            self._say(
                f"{len(pending)} of {self._count} workers have not started yet; Ray may have no GPU or core for them, or they load slowly"
            )

    def _met(self, call: Any, number: int) -> None:
        try:
            self._device, self._places[number] = ray.get(call)
            self._answer(number)
            self._refused.pop(number, None)
            self._idle.append(number)
        except ray.exceptions.RayTaskError as error:  # what is wrong with spec, model or machine
            ours = isinstance(error.cause, InputError)
            said = str(error.cause) if ours else f"{type(error.cause).__name__}: {error.cause}"
            told = number in self._refused
            self._refused[number] = InputError(said) if ours else error
            self._answer(number)
            if self._device is not None and not told:
                self._say_absent(number, said)
            self._absent.append((time.monotonic() + FAULT_SEC, number))  # others work: this machine's own fault
        except ray.exceptions.RayError as error:  # its process or node is away
            self._lost = type(error).__name__
            self._deaths[number] += 1
            self._absent.append((time.monotonic() + WAKE_SEC, number))

    def describe(self) -> str:
        """Who works, in words."""
        return f"{self._where}, {self._count} worker{'s' * (self._count > 1)} on {self._device}"

    def free(self) -> int:
        """Workers that are ready and without a unit."""
        return len(self._idle)

    def submit(self, task: Task) -> None:
        """Hands the unit to a worker that is ready."""
        number = self._idle.pop(0)
        self._busy[self._actors[number].run.remote(task)] = (number, task.shard)

    def wait(self, timeout_sec: float) -> list[Done | Failed]:
        """What ended within `timeout_sec`; also passes on what the workers have drawn meanwhile."""
        if self._waking or self._absent:
            self._wake(0.0 if self._busy else min(timeout_sec, POLL_SEC))
        if not self._busy:
            return []
        done, _ = ray.wait(list(self._busy), num_returns=1, timeout=min(timeout_sec, POLL_SEC))
        if not done or time.monotonic() - self._reported > REPORT_SEC:  # an idle worker's next unit comes first
            self._report()
        return [self._ended(call) for call in done]

    def _ended(self, call: Any) -> Done | Failed:
        number, shard = self._busy.pop(call)
        try:
            result = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ChangedError):
                raise InputError(str(cause)) from None
            self._bench(number, restart=not isinstance(cause, InputError | OSError))
            said = str(cause) if isinstance(cause, InputError) else f"{type(cause).__name__}: {cause}"
            return Failed(shard, said, died=False, error=cause, worker=number, where=self._place(number))
        except ray.exceptions.RayError as error:  # the worker's process, its node, or the connection to it ended
            self._faults[number] += 1
            wait_sec = min(FAULT_SEC, WAKE_SEC * 2.0 ** (self._faults[number] - 1))
            self._absent.append((time.monotonic() + wait_sec, number))
            return Failed(shard, type(error).__name__, died=True, worker=number, where=self._place(number))
        self._idle.append(number)
        self._faults[number] = 0
        return Done(result, number)

    def _place(self, number: int) -> str:
        return f"{self._places.get(number, 'an unknown node')}, worker {number + 1}" if self._on_cluster else ""

    def _bench(self, number: int, *, restart: bool) -> None:
        """Nothing for this worker until it has loaded anew; the longer, the more of its units failed in a row, where there are others."""
        self._faults[number] += 1
        wait_sec = WAKE_SEC
        if self._faults[number] > 1 and self._count > 1:
            wait_sec = min(MOST_FAULT_SEC, FAULT_SEC * 2.0 ** (self._faults[number] - 2))
        if restart:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(self._actors[number], no_restart=False)
        self._absent.append((time.monotonic() + wait_sec, number))

    def _report(self) -> None:
        self._reported = time.monotonic()
        present = self._actors.keys() - {number for _, number in self._absent} - set(self._waking.values())
        calls = {number: self._actors[number].progress.remote() for number in sorted(present)}
        if not calls:
            return
        ready, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=0.2)
        for number, call in calls.items():
            if call not in ready:
                continue
            with contextlib.suppress(ray.exceptions.RayError):
                drawn, rejected = ray.get(call)
                before = self._seen[number] if drawn >= self._seen[number][0] else (0, 0)  # it restarted from zero
                self._seen[number] = (drawn, rejected)
                self._tick(drawn - before[0], rejected - before[1])

    def close(self) -> None:
        """Ends the actors and this process's connection."""
        with contextlib.suppress(ray.exceptions.RayError):
            self._report()
        for actor in self._actors.values():
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor, no_restart=True)
        ray.shutdown()
