"""One worker of several that breaks, hangs or has a full disk: its units are drawn by the others, and the build ends whole."""

from __future__ import annotations

import errno
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from running import run

from synthfactory.commands.common import with_bank
from synthfactory.run import at_work, driver
from synthfactory.run.budget import spent_before
from synthfactory.run.failing import Failures
from synthfactory.run.local import LocalPool
from synthfactory.run.prepare import prepare
from synthfactory.run.result import BuildResult
from synthfactory.run.task import Done, Failed, Setup, Task, Tick
from synthfactory.run.worker import Worker
from synthfactory.shards.store import open_store
from synthfactory.spec.errors import InputError
from synthfactory.spec.load import load_spec

MakeSpec = Callable[..., Path]
FULL = OSError(errno.ENOSPC, "No space left on device")


class Several:
    """Workers in turns, in this process: worker 0 does what `odd` does with a task (None: it hangs), the others make it."""

    def __init__(self, setup: Setup, tick: Tick, odd: Callable[[Task], BaseException | None], workers: int = 3) -> None:
        self._worker, self._tick, self._odd, self.workers = Worker(setup), tick, odd, workers
        self._busy: dict[int, Task] = {}
        self._benched = 0  # rounds that worker 0 still sits out, as after a failure

    def describe(self) -> str:
        return f"{self.workers} workers"

    def free(self) -> int:
        return self.workers - len(self._busy) - (self._benched > 0)

    def submit(self, task: Task) -> None:
        number = next(each for each in range(self._benched > 0, self.workers) if each not in self._busy)
        self._busy[number] = task

    def wait(self, timeout_sec: float) -> list[Done | Failed]:
        ended: list[Done | Failed] = []
        self._benched -= self._benched > 0
        for number, task in sorted(self._busy.items()):
            if number == 0:
                self._benched = 2
                error = self._odd(task)
                if error is None:
                    continue
                ended.append(Failed(task.shard, str(error), died=False, error=error, worker=0, where="node-7"))
            else:
                try:
                    ended.append(Done(self._worker.run(task, self._tick), number))
                except RuntimeError as error:
                    ended.append(Failed(task.shard, str(error), died=False, error=error, worker=number))
            del self._busy[number]
        return ended

    def close(self) -> None:
        self._busy.clear()


def built(spec: Path, odd: Callable[[Task], BaseException | None], workers: int = 3) -> tuple[BuildResult, list[str]]:
    said: list[str] = []
    prepared = with_bank(prepare(load_spec(spec)))
    return driver.build(prepared, lambda setup, tick: Several(setup, tick, odd, workers), say=said.append), said


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: an illegal memory access"), FULL, InputError("s3://b: no permission to read it")],
)
def test_a_broken_worker_costs_no_unit(spec_file: MakeSpec, tmp_path: Path, error: Exception) -> None:
    result, said = built(spec_file(), lambda task: error)
    assert result.complete and not result.set_aside
    assert run("verify", tmp_path / "out").code == 0
    assert any("node-7" in line and str(error) in line for line in said)


@pytest.mark.parametrize("error", [FULL, InputError("s3://b: no permission to read it")])
def test_what_half_of_the_workers_say_ends_the_build(spec_file: MakeSpec, error: Exception) -> None:
    with pytest.raises(type(error)):
        built(spec_file(), lambda task: error, workers=2)


def test_a_worker_that_hangs_does_not_keep_its_unit(
    spec_file: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_work, "LONG_SEC", 0.0)
    monkeypatch.setattr(at_work, "LONG_TIMES", 0.0)
    monkeypatch.setattr(at_work, "FEW_DONE", 1)
    result, said = built(spec_file(), lambda task: None)
    assert result.complete
    assert run("verify", tmp_path / "out").code == 0
    assert any("takes long" in line and "another worker draws it as well" in line for line in said)


@pytest.mark.parametrize("limit", [None, 10_000])
def test_a_hung_worker_costs_a_budget_its_reservation_and_no_more(
    spec_file: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    for name, value in (("LONG_SEC", 0.0), ("LONG_TIMES", 0.0), ("LONG_ALONE_SEC", 0.0)):
        monkeypatch.setattr(at_work, name, value)
    result, _ = built(spec_file(budget={} if limit is None else {"network_calls": limit}), lambda task: None)
    assert result.complete
    assert run("verify", tmp_path / "out").code == 0


def test_a_late_second_copy_is_counted_once(spec_file: MakeSpec, tmp_path: Path) -> None:
    at = at_work.AtWork()
    task = Task(3, (), (), None, ())
    at.begin(task)
    at.begin(task)
    assert not at.end(3, made=False), "the other copy may still make it"
    assert at.end(3, made=True)
    at.begin(task)
    at.begin(task)
    assert at.end(3, made=True)
    assert not at.end(3, made=True)
    assert not at.tasks and at.straggler() is None


@pytest.mark.parametrize(
    ("error", "died"), [(RuntimeError("x"), False), (None, True), (InputError("no condition"), False)]
)
def test_a_unit_is_set_aside_where_two_workers_fail_with_it(error: Exception | None, died: bool) -> None:
    result = BuildResult(0, 9, 9, 0)
    failures, queue = Failures(lambda: 9, result, lambda text: None), deque([1, 2])
    for _ in range(5 if died else 3):
        failures.failed(Failed(7, "x", died=died, error=error, worker=0), queue)
        assert queue.pop() == 7, "at the far end, where another worker finds it"
    assert not result.set_aside
    failures.failed(Failed(7, "x", died=died, error=error, worker=1), queue)
    assert result.set_aside == {7: "x"} and list(queue) == [1, 2]
    assert result.to_go_on and not result.complete


def test_several_units_set_aside_in_a_row_end_a_build() -> None:
    result = BuildResult(0, 9, 9, 0)
    failures, queue = Failures(lambda: 9, result, lambda text: None), deque([1, 2])
    for shard in (7, 8, 9):
        for worker in (0, 1, 2):
            failures.failed(Failed(shard, "x", died=False, error=RuntimeError("x"), worker=worker), queue)
    assert len(result.set_aside) == 3 and result.gave_up


def test_silence_is_spoken_of(spec_file: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_work, "SILENT_SEC", -1.0)
    monkeypatch.setattr(at_work, "LONG_SEC", 0.0)
    monkeypatch.setattr(at_work, "LONG_TIMES", 0.0)
    _, said = built(spec_file(), lambda task: None)
    assert any("no tile was drawn for" in line and "at work" in line for line in said)


def test_a_build_that_gave_up_does_not_wait_for_a_worker_that_hangs(
    spec_file: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("x")

    monkeypatch.setattr(at_work, "SILENT_SEC", 0.3)
    monkeypatch.setattr(Worker, "run", broken)
    result, _ = built(spec_file(output={"path": str(tmp_path / "out"), "shard_size": 1}), lambda task: None)
    assert result.gave_up and result.tiles == 0


def test_a_note_that_cannot_be_written_ends_no_build_without_a_budget(
    spec_file: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthfactory.shards.local import LocalStore

    put = LocalStore.put

    def refuses(self: LocalStore, path: str, content: bytes | Path) -> None:
        if path.startswith("runs/"):
            raise OSError("503 SlowDown")
        put(self, path, content)

    monkeypatch.setattr(LocalStore, "put", refuses)
    result, said = built(spec_file(), lambda task: RuntimeError("x"))
    assert result.complete
    assert any("what was spent could not be noted (503 SlowDown)" in line for line in said)


def test_what_was_drawn_before_a_stop_counts_against_the_budget(spec_file: MakeSpec, tmp_path: Path) -> None:
    """33 tiles of 10 calls; stopped in the midst of the first shard."""

    def stopping(setup: Setup, tick: Tick) -> LocalPool:
        drawn = [0]

        def until(count: int, rejected: int) -> None:
            tick(count, rejected)
            drawn[0] += count
            if drawn[0] >= 4:
                raise KeyboardInterrupt

        return LocalPool(setup, until)

    prepared = with_bank(prepare(load_spec(spec_file(budget={"network_calls": 5000}))))
    with pytest.raises(KeyboardInterrupt):
        driver.build(prepared, stopping, say=lambda text: None)
    calls, seconds = spent_before(open_store(str(tmp_path / "lineage")))
    assert 40 <= calls <= 400
    assert seconds > 0


def test_damage_that_the_last_check_sees_is_said(
    spec_file: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = driver.derived_files

    def losing(*given: object) -> dict[str, bytes]:
        next(iter((tmp_path / "out/shards").glob("000001-*.tar"))).unlink()  # a lifecycle rule, between commit and end
        return whole(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "derived_files", losing)
    ended = run("build", spec_file(), "--local")
    monkeypatch.undo()
    assert ended.code == 4
    assert "damaged since it was committed: shards/000001-" in " ".join(ended.out.split())
    assert run("build", spec_file(), "--local").code == 0
    assert run("verify", tmp_path / "out").code == 0


def test_notes_hold_what_every_try_has_cost(spec_file: MakeSpec, tmp_path: Path) -> None:
    built(spec_file(), lambda task: RuntimeError("x"))
    notes = [json.loads(path.read_text()) for path in (tmp_path / "lineage/runs").rglob("failed-*.json")]
    assert notes and all(note["network_calls"] > 0 for note in notes), (
        "of a process that is gone nobody knows: all it may have made"
    )


def test_a_store_that_takes_nothing_ends_the_build_before_all_is_drawn_in_vain() -> None:
    result = BuildResult(0, 9000, 1000, 0)
    failures, queue, tried = Failures(lambda: 4, result, lambda text: None), deque(range(1000)), 0
    while queue and not result.gave_up:
        failures.failed(Failed(queue.popleft(), "503", died=False, error=OSError("503"), worker=tried % 4), queue)
        tried += 1
    assert tried == 9 and result.to_go_on
    short = BuildResult(0, 9000, 1000, 0)
    failures = Failures(lambda: 20, short, lambda text: None)
    for worker in range(40):  # an outage of a minute: each has failed twice
        failures.failed(Failed(worker, "503", died=False, error=OSError("503"), worker=worker % 20), queue)
    assert not short.gave_up
    broken, result = deque(range(1000)), BuildResult(0, 9000, 1000, 0)
    failures = Failures(lambda: 100, result, lambda text: None)
    for number in range(60):  # two of a hundred, before the others have made their first
        failures.failed(
            Failed(broken.popleft(), "CUDA", died=False, error=RuntimeError("x"), worker=number % 2), broken
        )
    assert not result.gave_up
