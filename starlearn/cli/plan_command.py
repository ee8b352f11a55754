"""starlearn plan: expected time and price of scoring a pool, with the assumptions."""

from dataclasses import replace
from typing import Annotated

import typer

from starlearn.cli import cost_model
from starlearn.console import exit_on_error, make_console, plain
from starlearn.errors import InputError

app = typer.Typer()
SIZES = (10**6, 10**7, 10**8, 10**9)
WORKERS = (1, 10, 100, 1000)


@app.command("plan")
def plan_command(
    items: Annotated[float, typer.Option(help="Number of items of the pool, such as 1e6.")],
    tokens: Annotated[float, typer.Option(help="Mean length of a prompt in tokens.")] = 256,
    passes: Annotated[int, typer.Option(help="Monte-Carlo dropout passes.", min=1)] = 3,
    parameters: Annotated[float, typer.Option(help="Parameters of the model, such as 8e9.")] = 8e9,
    device: Annotated[
        str, typer.Option(help=f"Accelerator of a worker: {', '.join(cost_model.DEVICES)}.")
    ] = "A100-80",
    workers: Annotated[int, typer.Option(help="Number of workers.", min=1)] = 1,
    rate: Annotated[
        float | None,
        typer.Option(help="Measured tokens per second of one pass; else assumed."),
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="US dollars per hour of a worker; else assumed.")
    ] = None,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Add a table for up to 1e9 items and 1000 workers.")
    ] = False,
) -> None:
    """Estimate time and price of scoring a pool. No model is loaded, and no worker is started."""
    with exit_on_error(lambda: "Nothing was started."):
        if device not in cost_model.DEVICES:
            raise InputError(
                f"--device {device} is not known; choose one of {', '.join(cost_model.DEVICES)}, "
                "or give --rate and --price of another one"
            )
        if not 1 <= items <= 1e15:
            raise InputError(f"--items must be from 1 to 1e15, got {items:g}")
        job = cost_model.Job(int(items), tokens, passes, parameters)
        given = cost_model.DEVICES[device] if rate is None else None
        speed = (
            cost_model.tokens_per_second(job, cost_model.DEVICES[device]) if rate is None else rate
        )
        cost = cost_model.DEVICES[device].price if price is None and given else price
        _show_plan(job, cost_model.plan(job, speed, workers, price=cost), speed)
        show = make_console().print
        show("\nAssumptions:")
        for line in cost_model.assumptions(job, given, speed, cost):
            show(plain(f"- {line}"))
        if scaling:
            _show_scaling(job, speed)


def _show_plan(job: cost_model.Job, found: cost_model.CostPlan, rate: float) -> None:
    show = make_console().print
    money = "" if found.money is None else f", {found.money:,.2f} US dollars"
    show(
        plain(
            f"{job.items:,} items on {found.workers} workers: {duration(found.seconds)}{money}. "
            f"Workers score in {found.share:.0%} of their time."
        )
    )
    for name in ("prepare", "start", "score", "driver", "storage", "merge"):
        show(plain(f"  {name:8} {duration(getattr(found, name))}"))
    show(
        plain(
            f"More than {cost_model.stops_scaling(job, rate):,} workers would spend most of their "
            f"time waiting. The bottleneck is: {found.limit}."
        )
    )


def _show_scaling(job: cost_model.Job, rate: float) -> None:
    show = make_console().print
    show(plain(f"\n{'items':>14} {'workers':>8} {'time':>10} {'scoring':>8}  bottleneck"))
    for m in SIZES:
        for workers in WORKERS:
            found = cost_model.plan(replace(job, items=m), rate, workers)
            show(
                plain(
                    f"{m:>14,} {workers:>8,} {duration(found.seconds):>10} "
                    f"{found.share:>8.0%}  {found.limit}"
                )
            )


def duration(seconds: float) -> str:
    """Return a time as text, in a suitable unit."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
