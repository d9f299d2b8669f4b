"""The training loop: the same command starts a run, resumes it after any interruption, and does nothing once it is done."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from synthfactory.shards.beside import beside
from synthfactory.spec.errors import InputError
from train import checkpoint, taught
from train.claim import claim, held, kept_says
from train.config import TrainConfig
from train.ema import Ema
from train.graphed import NORM, Graphed
from train.lean import copies_of, leaves
from train.loader import Batch, Loader
from train.metrics import Metrics
from train.onepass import one_pass_of
from train.optimiser import check_workers, optimiser_of, rate_at
from train.place import Figures, Loss, Phase, Step, read
from train.plan import unwise
from train.sampler import Order
from train.samples import Sheets
from train.speed import prepare
from train.split import Split, split
from train.step import step_for
from train.team import Team
from train.terms import built_sets, notes_of, stated_terms
from train.watch import DivergedError, Watch

AHEAD = {"cuda": 1}  # steps that are begun before the last one is looked at, by the device's type
# What a run's weights come from, by its name in RUN/extra.json: none of it may change between two calls.
ORIGIN = {
    "base": "the model named as base",
    "guide": "the model named as finetune.guided.by",
    "encoder_step": "encoder_run",
    "encoder_sha256": "encoder_run",
    "vae_step": "vae_run",
    "vae_sha256": "vae_run",
    "data_sha256": "the tiles",
    "split_sha256": "the tiles' patients, or which of them are held out,",
}


def train(
    config: TrainConfig,
    run: Path,
    cache: Path,
    say: Callable[[str], None] = lambda text: None,
    team: Team | None = None,
) -> int:
    """Trains until `optimiser.steps`; returns the number of steps done by this call. `team` says who else works on the run.

    InputError for a run folder of another config and for data that cannot be trained on; DivergedError where the loss is no longer
    finite, or jumps.
    """
    torch.set_num_threads(config.threads)
    team = Team() if team is None else team
    # On a GPU, kernels that repeat to the bit are slower; a resumed run goes on from the same place, with the same noise.
    torch.use_deterministic_algorithms(team.device.type == "cpu", warn_only=True)
    # Filling every new tensor costs a quarter of a step; nothing here reads memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    check_workers(config.optimiser, team.world)
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.mkdir(mode=0o700, exist_ok=True)  # of real tiles: who they are of, their latents
    with contextlib.ExitStack() as stack:
        with team.first():
            divided = split(config.data, cache)
            if team.leads:
                stack.enter_context(held(run))
                claim(config, run)
        for text in unwise(config, divided, team.device) if team.leads else ():
            say(f"warning: {text}")
        data, index = config.data, divided.index
        order = Order(config.seed, divided.train, index.labels[divided.train], divided.weights(data), data.sampling)
        loader = stack.enter_context(
            Loader(
                index,
                order,
                seed=config.seed,
                batch=config.optimiser.batch,
                share=team.share,
                symmetries=data.symmetries,
                stain_jitter=data.stain_jitter,
                end=config.optimiser.steps,
            )
        )
        try:
            return _Run(config, run, cache, divided, loader, team).go()
        except KeyboardInterrupt:
            if team.leads:
                say(kept_says(config, run))
            raise


class _Pending(NamedTuple):
    """An update that is on its way: what every part of the batch found (the loss by the name ""), and the gradient's norm, unread."""

    step: int
    phase: Phase
    found: Sequence[Figures]
    norm: Tensor


class _Run:
    """One call's work on a run."""

    def __init__(self, config: TrainConfig, run: Path, cache: Path, divided: Split, loader: Loader, team: Team) -> None:
        self.config, self.run, self.divided, self.loader, self.team = config, run, divided, loader, team
        with team.first():
            self.work: Step = step_for(config, loader, cache, team, _begun(run))
        prepare(config, self.work.module)
        self.copies = copies_of(config, self.work.module, team.world)
        plan = config.optimiser
        self.phases = self.work.phases
        self.leaves = {phase.name: leaves(phase.weights, self.copies) for phase in self.phases}
        self.losses = []
        for phase in self.phases:
            self._turn_on(phase)
            # A head may have nothing to learn; without alignment, the projector has not.
            find = config.mode == "encoder" or (
                config.mode in ("diffusion", "finetune") and not config.diffusion.alignment
            )
            self.losses.append(team.wrapped(self.work.module, phase.loss, find_unused=find))
        self.optimisers = {phase.name: optimiser_of(config, self.work.module, phase) for phase in self.phases}
        self.averages = [Ema(self.work.module, decay) for decay in plan.ema]
        self.one_pass = one_pass_of(config, self.optimisers, self.work.module, self.averages, self.copies)
        self.graph = self._graph()
        self._check_origin()
        self.first, also = checkpoint.restore(run, self.work.module, self.averages, self.optimisers)
        if self.copies is not None:
            self.copies.refresh()
        kept = also.get("watch", {})
        self.watches = {phase.name: Watch(**kept.get(phase.name, {})) for phase in self.phases}
        wanted = config.samples
        self.every = wanted.every if wanted else 1
        self.sheets = Sheets(wanted, loader, divided.validation, divided.train) if wanted and team.leads else None
        if team.leads:
            self._state()
            taught.note(run, config, divided, resumed=self.first > 0)
        self.metrics = Metrics(run, self.first, board=config.tensorboard) if team.leads else None

    def _graph(self) -> Graphed | None:
        """On one GPU, of a step that needs nothing but numbers of its batch: all else is kept, and lies on the device."""
        one = self.team.device.type == "cuda" and self.team.world == 1 and self.config.optimiser.accumulate == 1
        if not (self.config.graphs and one and self.work.by_number):
            return None
        move = self.one_pass.move if self.one_pass is not None else None
        return Graphed(self.losses[0], self.leaves[self.phases[0].name], self._autocast, self.team.device, move)

    def _check_origin(self) -> None:
        """InputError where a run that is resumed rested on something else: before its weights, of other shapes perhaps, are read."""
        before, now = _begun(self.run), self._extra()
        if before:
            # Runs that were begun before these were noted go on.
            of_old = {"encoder_sha256", "vae_sha256", "split_sha256"}
            if self.config.mode == "vae" and self.config.base is None:
                of_old.add("encoder_step")
            noted = {name: what for name, what in ORIGIN.items() if name in before or name not in of_old}
            changed = list(dict.fromkeys(what for name, what in noted.items() if before.get(name) != now.get(name)))
            if changed:
                raise InputError(
                    f"{self.run}: {' and '.join(changed)} changed since it was begun; put back what was there, or use another run folder"
                )

    def _state(self) -> None:
        """Writes RUN/extra.json, what an export says of the run's origin."""
        with beside(self.run / "extra.json") as new:
            new.write_text(json.dumps(self._extra(), indent=1))

    def _extra(self) -> dict[str, Any]:
        index = self.divided.index
        return {
            **self.work.extra(),
            "tiles": len(self.divided.train),
            "validation_tiles": len(self.divided.validation),
            "synthetic_tiles": int(index.synthetic[self.divided.train].sum()),
            "unknown_patients": int(((index.patients < 0) & ~index.synthetic)[self.divided.train].sum()),
            "classes": index.classes,
            "data_sha256": index.digest,
            "split_sha256": self.divided.digest,
            "sets": built_sets(self.config.data),
            "terms": stated_terms(self.divided),
            "skipped": index.skipped,
        }

    def go(self) -> int:
        """Every step that is left; returns how many."""
        plan, module = self.config.optimiser, self.work.module
        bar = tqdm(
            range(self.first, plan.steps),
            initial=self.first,
            total=plan.steps,
            desc=self.config.mode,
            mininterval=5.0,
            disable=not self.team.leads,
        )
        began = time.monotonic()
        if self.config.data.validation is not None and self.first == 0:  # what everything later is compared with
            if self.metrics is not None:
                self.metrics.note({"step": 0, "seconds": 0.0, **self._validated()})
            self.team.barrier()
        module.train()
        pending, loss, figures = deque[list[_Pending]](), 0.0, dict[str, float]()
        for step in bar:
            for optimiser in self.optimisers.values():
                for group in optimiser.param_groups:
                    group["lr"] = rate_at(plan, step)
            pending.append(self._step(step))
            last, look = step + 1 == plan.steps, self.config.data.validation
            looks = look is not None and ((step + 1) % look.every == 0 or last)
            logs = (step + 1) % self.config.log_every == 0 or last or looks
            saves = (step + 1) % self.config.checkpoint_every == 0 or last
            draws = self.config.samples is not None and (step + 1) % self.every == 0
            # A GPU that is asked how a step went stands still until it is told the next one: that is begun before.
            left = 0 if logs or saves or draws else AHEAD.get(self.team.device.type, 0)
            while len(pending) > left:
                loss, figures = self._settled(pending.popleft())
            if looks:
                if self.team.leads:
                    figures |= self._validated()
                self.team.barrier()
            if self.metrics is not None and logs:
                spent = time.monotonic() - began
                seconds = self.metrics.seconds_before + spent
                figures["waiting"] = self.loader.waited_sec / max(spent, 1e-9)
                line = {"step": step + 1, "loss": loss, "rate": rate_at(plan, step), "seconds": seconds, **figures}
                self.metrics.note(line)
                bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items()}, refresh=False)
            if self.sheets is not None and draws:
                self._draw(step + 1)
            if saves:
                if self.team.leads:
                    self._save(step + 1)
                self.team.barrier()
        if self.metrics is not None:
            self.metrics.close()
        return max(0, plan.steps - self.first)

    def _step(self, step: int) -> list[_Pending]:
        """All updates of a step, on one batch; a GPU may be at work on them yet."""
        pieces = _parts(self.loader.batch(step), self.config.optimiser.accumulate)
        updates = [self._update(step, phase, run, pieces) for phase, run in zip(self.phases, self.losses, strict=True)]
        for ema in self.averages if self.one_pass is None else ():
            ema.update(self.work.module, step)
        return updates

    def _settled(self, updates: list[_Pending]) -> tuple[float, dict[str, float]]:
        """The loss that validation looks at as well, and figures of all updates: means over the whole batch. DivergedError where they
        show that the weights are lost; a checkpoint is written of what has been settled alone.
        """
        loss, figures = 0.0, dict[str, float]()
        for update in updates:
            own, found = self._read(update)
            loss = loss if update.phase.opposes else own
            before = f"{update.phase.name}_" if update.phase.name else ""
            figures |= {f"{before}{name}": value for name, value in found.items()}
        return loss, figures

    def _turn_on(self, phase: Phase) -> None:
        """Gradients for the phase's weights alone; they still flow through all others."""
        if len(self.phases) > 1:
            mine = {id(weight) for weight in phase.weights}
            for other in self.phases:
                for weight in other.weights:
                    weight.requires_grad_(id(weight) in mine)

    def _update(self, step: int, phase: Phase, run: Loss, pieces: list[Batch]) -> _Pending:
        found = list[Figures]()
        if self.one_pass is not None:
            self.one_pass.ready(step)
        if self.graph is not None:
            graphed = self.graph(pieces[0])
            norm = graphed.pop(NORM, None)
            return self._moved(step, phase, [graphed], norm)
        self._turn_on(phase)
        for leaf in self.leaves[phase.name]:
            leaf.grad = None
        for number, piece in enumerate(pieces, start=1):
            alone = self.team.unsynchronised(run) if number < len(pieces) else contextlib.nullcontext()
            with alone:
                with self._autocast():
                    loss, figures = run(piece)
                (loss / len(pieces)).backward()  # type: ignore[no-untyped-call]
            found.append({"": loss.detach(), **figures})
        return self._moved(step, phase, found)

    def _moved(self, step: int, phase: Phase, found: list[Figures], norm: Tensor | None = None) -> _Pending:
        """The optimiser's step, by the gradients that are there; with a `norm` it has been made."""
        if norm is None and self.one_pass is not None:
            norm = self.one_pass.move()
        elif norm is None:
            norm = nn.utils.clip_grad_norm_(phase.weights, self.config.optimiser.clip)
            self.optimisers[phase.name].step()
        return _Pending(step, phase, found, norm)

    def _read(self, update: _Pending) -> tuple[float, dict[str, float]]:
        """Waits for an update, and looks at what it found."""
        parts = [read(figures) for figures in update.found]
        names = list(parts[0])
        means = self.team.mean([sum(figures[name] for figures in parts) / len(parts) for name in names])
        found = dict(zip(names, means, strict=True))
        loss = found.pop("")
        self._look(update.step, update.phase, loss)
        found["gradient_norm"] = float(update.norm)
        if not math.isfinite(found["gradient_norm"]):  # weights and averages are spoilt, whatever the loss is
            raise self._diverged(f"step {update.step}: the gradient's norm is {found['gradient_norm']}")
        return loss, found

    def _look(self, step: int, phase: Phase, loss: float) -> None:
        try:
            self.watches[phase.name].look(step, loss, jumps=phase.opposes)
        except DivergedError as error:
            raise self._diverged(str(error)) from None

    def _diverged(self, what: str) -> DivergedError:
        good = checkpoint.steps(self.run)
        where = (
            f"the last good checkpoint is {self.run}/checkpoints/{good[-1]:06d}" if good else "there is no checkpoint"
        )
        return DivergedError(
            f"{what}; {where}; look at the tiles of this step, or begin another run folder with a lower optimiser.rate"
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.team.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    @torch.no_grad()
    def _validated(self) -> dict[str, float]:
        """Mean loss and figures of the averaged weights on validation tiles: always the same tiles, noise and times."""
        look, module = self.config.data.validation, self.work.module
        assert look is not None
        phase = [phase for phase in self.phases if not phase.opposes][-1]
        rows = self.divided.validation
        order = Order(0, rows, self.divided.index.labels[rows], np.ones(len(rows)))
        each = min(self.config.optimiser.batch, look.tiles)
        found, counts = list[dict[str, float]](), [min(each, look.tiles - at) for at in range(0, look.tiles, each)]
        with (
            Loader(
                self.divided.index,
                order,
                seed=0,
                batch=each,
                symmetries=False,
                end=len(counts),
                decodes=self.loader.decodes,
                also=self.loader.also,
            ) as loader,
            self.averages[0].applied(module),
        ):
            module.eval()
            for number, count in enumerate(counts):
                batch = loader.batch(number)
                with self._autocast():
                    loss, figures = phase.loss(batch if count == each else batch.cut(np.arange(count)))
                found.append({"loss": loss.item(), **read(figures)})
        module.train()
        return {
            f"validation_{name}": float(np.average([line[name] for line in found], weights=counts)) for name in found[0]
        }

    def _draw(self, step: int) -> None:
        model = self.work.drawing(self.averages[0].state)
        if model is not None and self.sheets is not None:
            self.sheets.write(model, self.run / "samples" / f"{step:06d}.png")

    def _save(self, step: int) -> None:
        keep = checkpoint.Keep(self.config.keep_last, self.config.keep_every)
        also = {"watch": {name: watch.to_json() for name, watch in self.watches.items()}}
        try:
            checkpoint.save(self.run, step, self.work.module, self.averages, self.optimisers, keep=keep, also=also)
        except OSError as error:
            good = checkpoint.steps(self.run)
            why = error.strerror or error
            raise InputError(
                f"{self.run}/checkpoints: step {step} cannot be written: {why}; make room and run the same command: "
                f"it goes on from step {good[-1] if good else 0}"
            ) from None


def _begun(run: Path) -> dict[str, Any]:
    """What RUN/extra.json says, of a run that has a checkpoint; {} where none is begun."""
    return notes_of(run) if checkpoint.steps(run) and (run / "extra.json").exists() else {}


def _parts(batch: Batch, count: int) -> list[Batch]:
    if count == 1:
        return [batch]
    return [batch.cut(where) for where in np.array_split(np.arange(len(batch.rows)), count)]
