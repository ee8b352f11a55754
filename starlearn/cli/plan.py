"""starlearn plan: what scoring a pool will take in time and money, with what that rests on."""

from typing import Annotated

import typer

from starlearn.cli import planning
from starlearn.console import make_console, plain, told_plainly
from starlearn.errors import InputError

app = typer.Typer()
SIZES = (10**6, 10**7, 10**8, 10**9)
WORKERS = (1, 10, 100, 1000)


@app.command("plan")
def plan_command(
    items: Annotated[float, typer.Option(help="Items of the pool, such as 1e6.")],
    tokens: Annotated[float, typer.Option(help="Mean length of a prompt in tokens.")] = 256,
    passes: Annotated[int, typer.Option(help="Monte-Carlo dropout passes.", min=1)] = 3,
    parameters: Annotated[float, typer.Option(help="Of the model, such as 8e9.")] = 8e9,
    device: Annotated[
        str, typer.Option(help=f"What a worker computes on: {', '.join(planning.DEVICES)}.")
    ] = "A100-80",
    workers: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
    rate: Annotated[
        float | None,
        typer.Option(help="Tokens of one pass a second, where it was measured; else assumed."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="US dollars an hour of a worker; else assumed.")
    ] = None,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Also for up to 1e9 items and 1000 workers.")
    ] = False,
) -> None:
    """Tell time and money of scoring a pool, and what that rests on; loads and starts nothing."""
    with told_plainly(lambda: "Nothing was begun."):
        if device not in planning.DEVICES:
            raise InputError(
                f"--device {device} is not known; these are: {', '.join(planning.DEVICES)}. Give "
                "--rate and --price for another one"
            )
        if not 1 <= items <= 1e15:
            raise InputError(f"--items must be from 1 to 1e15, got {items:g}")
        job = planning.Job(int(items), tokens, passes, parameters)
        given = planning.DEVICES[device] if rate is None else None
        speed = planning.tokens_per_second(job, planning.DEVICES[device]) if rate is None else rate
        cost = planning.DEVICES[device].price if price is None and given else price
        _tell(job, planning.plan(job, speed, workers, price=cost), speed)
        say = make_console().print
        say("\nThis rests on:")
        for line in planning.assumptions(job, given, speed, cost):
            say(plain(f"- {line}"))
        if scaling:
            _tell_scaling(job, speed)


def _tell(job: planning.Job, found: planning.CostPlan, rate: float) -> None:
    say = make_console().print
    money = "" if found.money is None else f", {found.money:,.2f} US dollars"
    say(
        plain(
            f"{job.items:,} items on {found.workers} workers: {duration(found.seconds)}{money}. "
            f"Workers score in {found.share:.0%} of their time."
        )
    )
    for name in ("prepare", "start", "score", "driver", "storage", "merge"):
        say(plain(f"  {name:8} {duration(getattr(found, name))}"))
    say(
        plain(
            f"More than {planning.stops_scaling(job, rate):,} workers would spend most of their "
            f"time waiting; what holds them up is the {found.limit}."
        )
    )


def _tell_scaling(job: planning.Job, rate: float) -> None:
    say = make_console().print
    say(plain(f"\n{'items':>14} {'workers':>8} {'time':>10} {'scoring':>8}  held up by"))
    for m in SIZES:
        for found in planning.table(job, rate, WORKERS, [m]):
            say(
                plain(
                    f"{m:>14,} {found.workers:>8,} {duration(found.seconds):>10} "
                    f"{found.share:>8.0%}  {found.limit}"
                )
            )


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
