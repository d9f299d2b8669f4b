"""reader-study: can people tell a set's tiles from real ones, and are its labels right?"""

from __future__ import annotations

import click

from synthfactory.commands.common import PLACE, fit, say
from synthfactory.spec.errors import InputError
from synthfactory.spec.text import printable


@click.command("reader-study", short_help="Blinded reading: real or synthetic? (internal)")
@click.argument("out", metavar="[OUT]", required=False, type=PLACE)
@click.option("--real", help="Real tiles: class folders with a tiles.csv, a CSV, tars, a packed set.")
@click.option("-n", "count", type=click.IntRange(10, 1000), help="Tiles on the page, half of them real.  [default: 60]")
@click.option("-o", "--output", "target", help="The page.  [default: reader-study.html]")
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="The same page again from the same set and tiles (default: another one each time).",
)
@click.option("--score", "answers", multiple=True, metavar="ANSWERS.csv", help="Answers of a reader; once a reader.")
@click.option("--key", metavar="FILE.key.json", help="With --score: the key that was written with the page.")
@click.option("--report", metavar="R.json", help="With --score: writes all figures.")
def reader_study(
    out: str | None,
    real: str | None,
    count: int | None,
    target: str | None,
    seed: int | None,
    answers: tuple[str, ...],
    key: str | None,
    report: str | None,
) -> None:
    """Write a page that shows tiles of OUT among as many REAL ones of each class, in a secret order, and asks of each: real or
    synthetic? is the label right? Every fourth label is wrong on purpose.

    The page is one HTML file that fetches nothing and holds no key; the key goes beside it (FILE.key.json). Both are internal: the page
    shows real tiles, the key names them. Readers must have neither key nor OUT.

    With --score, judge the answers that readers downloaded from the page. 50 % right is guessing; an interval that includes it proves
    nothing.
    """
    given = {"OUT": out, "--real": real, "-n": count, "-o": target, "--seed": seed}
    scoring = {"--score": answers or None, "--key": key, "--report": report}
    if any(value is not None for value in scoring.values()):
        if not answers or key is None:
            raise InputError(
                "--score, --key: go together; give the answers and the key that was written with their page"
            )
        strange = [name for name, value in given.items() if value is not None]
        if strange:
            raise InputError(f"{strange[0]}: is for making a page, and --score judges answers; leave one of them out")
        _score(answers, key, report)
        return
    if out is None or real is None:
        raise InputError(
            "reader-study: needs OUT and --real SOURCE to make a page, or --score and --key to judge answers"
        )
    from synthfactory.run.reader_study import make_study

    made = make_study(out, real, 60 if count is None else count, target or "reader-study.html", seed, say)
    for line in made.lines:
        click.echo(fit(printable(line)))


def _score(answers: tuple[str, ...], key: str, report: str | None) -> None:
    from synthfactory.report.reader import render
    from synthfactory.run.reader_scores import score

    for line in render(score(answers, key, report)):
        click.echo(fit(line))
    if report is not None:
        click.echo(fit(printable(f"{report}: all figures; internal")))
