"""Progress for people: a bar on a terminal, a plain line now and then elsewhere. Counts tiles, not units."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

FIRST_LINE_SEC, LINE_EVERY_SEC = 10.0, 30.0


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min, 2.5 h, 4.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 129_600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def counting(
    total: int, what: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[], None]:
    """A function to be called for each of `total` things; it says now and then how many are done, and how long the rest may take."""
    began, done, due = clock(), 0, clock() + FIRST_LINE_SEC

    def tick() -> None:
        nonlocal done, due
        done += 1
        if clock() >= due:
            due = clock() + LINE_EVERY_SEC
            left = duration((clock() - began) / done * max(0, total - done))
            say(f"{what}: {done:,} of {total:,}, about {left} left")

    return tick


class Progress:
    """Tiles kept so far out of `total`, with tiles/s, remaining time and rejects. `tick` may be called between batches.

    `screened` False leaves rejects out (nothing is screened while tiles are only embedded or written).
    """

    def __init__(
        self,
        total: int,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        screened: bool = True,
    ) -> None:
        self._total, self._say, self._clock, self._screened = total, say, clock, screened
        self._kept = self._drawn = self._rejected = 0
        self._began = self._heard = clock()
        self._next_line = self._began + FIRST_LINE_SEC
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, unit="tile", dynamic_ncols=True, smoothing=0, file=sys.stderr)

    @property
    def drawn(self) -> int:
        """Candidates so far."""
        return self._drawn

    @property
    def silent_sec(self) -> float:
        """Seconds since something was drawn, or said of that."""
        return self._clock() - self._heard

    def spoken(self) -> None:
        """It was said that nothing is drawn."""
        self._heard = self._clock()

    def begin(self) -> None:
        """Counts time from now: workers are ready."""
        self._began = self._heard = self._clock()
        self._next_line = self._began + FIRST_LINE_SEC
        if self._bar is not None:
            self._bar.reset(total=self._total)

    def tick(self, drawn: int, rejected: int) -> None:
        """`drawn` more candidates, `rejected` of them dropped."""
        self._drawn += drawn
        if drawn:
            self._heard = self._clock()
        self._rejected += rejected
        kept = min(drawn - rejected, self._total - self._kept)
        self._kept += kept
        if self._bar is not None:
            self._bar.update(kept)
            if self._screened:
                self._bar.set_postfix_str(f"{self._rejected} rejected", refresh=False)
        elif drawn and self._clock() >= self._next_line:
            self._next_line = self._clock() + LINE_EVERY_SEC
            self._say(self.line())

    def line(self) -> str:
        """One plain line of where the build stands."""
        rate = self._kept / max(self._clock() - self._began, 1e-9)
        left = duration((self._total - self._kept) / rate) if rate > 0 else "unknown"
        line = f"{self._kept}/{self._total} tiles, {rate:.2f} tiles/s, about {left} left"
        return f"{line}, {self._rejected} of {self._drawn} candidates rejected" if self._screened else line

    def say(self, text: str) -> None:
        """A message that does not tear the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            self._say(text)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
