"""A run by several workers, on this machine or a cluster: Ray Train starts them and joins them by torch.distributed; the loop is the same.

The run's folder and the shards must be reachable from every worker by the same path. Where a worker dies, all begin again from
the last checkpoint; so does the same command.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from tqdm import tqdm

from synthfactory.run.ray_pool import start_ray
from synthfactory.spec.errors import InputError
from train.checkpoint import steps
from train.claim import claim, held, kept_says
from train.config import TrainConfig
from train.loop import train
from train.metrics import last_line
from train.optimiser import check_workers
from train.plan import unwise
from train.split import split
from train.team import Team
from train.watch import DivergedError, StoppedError

ATTEMPTS = 3  # begun anew after workers or nodes have died
LOOK_SEC = 1.0
PATIENCE_SEC = 24 * 3600  # while the leading worker makes latents and tokens; of a worker that died Ray itself tells


def _work(given: dict[str, Any]) -> None:
    """One worker, from start to end."""
    context = ray.train.get_context()
    device = torch.device(get_device()) if torch.cuda.is_available() else torch.device("cpu")
    # Ray gives a worker a folder of its own; paths of the config are meant from where the command was given, if that is shared.
    with contextlib.suppress(OSError):
        os.chdir(given["here"])
    team = Team(context.get_world_rank(), context.get_world_size(), device)
    train(TrainConfig.model_validate(given["config"]), Path(given["run"]), Path(given["cache"]), team=team)


def train_with_ray(
    config: TrainConfig, run: Path, cache: Path, *, workers: int, address: str | None, say: Callable[[str], None]
) -> int:
    """As `loop.train`, by `workers` workers, one GPU each where there are GPUs. Returns the steps that were done.

    InputError and DivergedError as there; InputError where the batch does not divide by the workers, or no cluster answers;
    StoppedError where workers died more than twice.
    """
    check_workers(config.optimiser, workers)
    divided = split(config.data, cache)  # what is wrong with the data is said before any worker starts
    with held(run):  # let go of for the workers, of whom the leading one takes it again
        claim(config, run)
    before = _done(run)
    if before >= config.optimiser.steps:
        return 0
    start_ray(address, workers * config.threads + 1 if address is None else 0)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        for text in unwise(config, divided, torch.device("cuda" if gpus else "cpu")):
            say(f"warning: {text}")
        where = f"Ray at {address}" if address else "this machine"
        say(f"{workers} workers on {'GPUs' if gpus else 'CPUs'} of {where}")
        with _progress(run, config.optimiser.steps), tempfile.TemporaryDirectory(prefix=".ray-", dir=run) as scratch:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    _trainer(config, run, cache, workers, gpus > 0, f"{scratch}/{attempt}").fit()
                    break
                except ray.train.WorkerGroupError as error:
                    _raise_meant(error.worker_failures)
                    if attempt == ATTEMPTS:
                        raise StoppedError(
                            f"workers ended {ATTEMPTS} times, last with: {_cause(error)}; {_done(run)} steps are kept, "
                            "and once that is mended, the same command goes on from there"
                        ) from None
                    say(f"a worker ended; going on from step {_done(run)}")
    except KeyboardInterrupt:
        say(kept_says(config, run))
        raise
    finally:
        ray.shutdown()
    return _done(run) - before


def _trainer(config: TrainConfig, run: Path, cache: Path, workers: int, gpu: bool, storage: str) -> TorchTrainer:
    return TorchTrainer(
        _work,
        train_loop_config={
            "config": config.model_dump(mode="json"), "run": str(run.resolve()), "cache": str(cache.resolve()), "here": str(Path.cwd()),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": config.threads, **({"GPU": 1} if gpu else {})}
        ),
        torch_config=TorchConfig(timeout_s=PATIENCE_SEC),
        run_config=ray.train.RunConfig(name="train", storage_path=str(Path(storage).resolve())),
    )  # fmt: skip


def _raise_meant(failures: Mapping[int, Exception]) -> None:
    """Raises what a worker said of the data or the loss; the others then only lost their connection to it."""
    for failure in failures.values():
        inner = _inner(failure)
        if isinstance(inner, InputError):
            raise InputError(str(inner)) from None
        if isinstance(inner, DivergedError):
            raise DivergedError(str(inner)) from None


def _inner(failure: Exception) -> Exception:
    """What the worker's own code raised, where Ray wrapped it."""
    return getattr(failure, "_base_exc", failure)


def _cause(error: ray.train.WorkerGroupError) -> str:
    """The last line of what ended a worker: of a disk or file first, since the others then only lost their connection to it."""
    found = [_inner(failure) for failure in error.worker_failures.values()]
    found.sort(key=lambda inner: not isinstance(inner, OSError) or isinstance(inner, ConnectionError))
    return (str(found[0] if found else error).strip() or type(found[0]).__name__).splitlines()[-1]


def _done(run: Path) -> int:
    return max(steps(run), default=0)


@contextlib.contextmanager
def _progress(run: Path, total: int) -> Iterator[None]:
    """A bar that follows the log that the leading worker writes."""
    ended = threading.Event()

    def follow() -> None:
        with tqdm(total=total, desc="training", mininterval=5.0) as bar:
            while not ended.wait(LOOK_SEC):
                bar.update(last_line(run).get("step", 0) - bar.n)
            bar.update(last_line(run).get("step", 0) - bar.n)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
