"""The campaign's commands: starlearn init, query, label, teach and what goes with them."""

import json
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from starlearn.console import exit_on_error, make_console, plain
from starlearn.errors import InputError, StorageError

if TYPE_CHECKING:
    from starlearn.campaign.campaign import Campaign
    from starlearn.campaign.status import Status

app = typer.Typer()

Resolution = StrEnum("Resolution", ["majority", "latest", "unanimous"])
Engine = StrEnum("Engine", ["ray"])
WeightFormat = StrEnum("WeightFormat", ["nf4", "fp4", "none"])
LEVELS = {"error": "ERROR", "warning": "Warning", "note": "Note"}

Folder = Annotated[Path, typer.Argument(help="The campaign's folder.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="Where the base model is now, if it moved.")]
Annotator = Annotated[str, typer.Option("--annotator", "-a", help="Who labels.")]


def typed(*words: object) -> str:
    """Return a command as it can be typed again, whatever is in its words."""
    return shlex.join(["starlearn", *map(str, words)])


def say(text: str) -> None:
    """Print text that may hold anything."""
    make_console().print(plain(text))


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Tell errors, warnings and Ctrl-C plainly; after Ctrl-C, what to type next."""

    def kept() -> str:
        from starlearn.campaign.campaign import Campaign
        from starlearn.errors import StarlearnError

        try:
            with Campaign.open(folder, read_only=True) as campaign:
                following = campaign.status().next
        except StarlearnError:
            following = typed("status", folder)
        return f"Labels and finished steps are kept. Go on: {following}"

    with _told(kept):
        yield


@contextmanager
def _told(kept: Callable[[], str]) -> Iterator[None]:
    console = make_console(stderr=True)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        console.print(plain(f"Note: {message}"))

    with exit_on_error(kept), warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = show
        yield


@contextmanager
def opened(folder: Path, model: str | None = None) -> Iterator["Campaign"]:
    """Open a campaign for a command."""
    with told(folder):
        from starlearn.campaign.campaign import Campaign

        with Campaign.open(folder, model=model) as campaign:
            yield campaign


@contextmanager
def opened_to_read(folder: Path, model: str | None = None) -> Iterator["Campaign"]:
    """Open a campaign for a command that only reads: a folder without write access will do."""
    with told(folder):
        from starlearn.campaign.campaign import Campaign

        try:
            campaign = Campaign.open(folder, model=model)
        except StorageError:
            campaign = Campaign.open(folder, model=model, read_only=True)
        with campaign:
            yield campaign


@app.command()
def init(
    folder: Folder,
    pool: Annotated[Path | None, typer.Option(help="Items: .jsonl or .csv.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id; without it, the small model in here.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Template; \\n is a line break.")] = None,
    choices: Annotated[str | None, typer.Option(help="The answers there are: a,b,c")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Answers are free texts of at most so many tokens.", min=1)
    ] = None,
    answer_pattern: Annotated[
        str | None, typer.Option(help="Regular expression of the final answer in a free text.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="TOML file with these and all other settings.")
    ] = None,
    quantization: Annotated[WeightFormat | None, typer.Option(help="Weights of the base.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides every draw.", min=0)] = None,
    resolution: Annotated[
        Resolution | None, typer.Option(help="Which label counts where annotators differ.")
    ] = None,
    per_item: Annotated[int | None, typer.Option(help="Annotators an item needs.", min=1)] = None,
    extra_fields: Annotated[
        str | None, typer.Option(help="Fields to show beside the prompt's: a,b")
    ] = None,
) -> None:
    """Begin a campaign in a new folder: a pool, a model, a prompt and the answers there are."""
    with _told(lambda: "Type the command again; a beginning that was cut short does no harm."):
        from starlearn.campaign.campaign import Campaign
        from starlearn.campaign.settings_file import beginning, read_settings

        given = read_settings(settings) if settings else {}
        task = {
            "prompt": None if prompt is None else prompt.replace("\\n", "\n"),
            "choices": _split(choices),
            "max_new_tokens": max_new_tokens,
            "answer_pattern": answer_pattern,
        }
        options = {
            "pool": None if pool is None else str(pool),
            "model": model,
            "quantization": quantization and quantization.value,
            "seed": seed,
            "resolution": resolution and resolution.value,
            "per_item": per_item,
            "extra_fields": _split(extra_fields),
        }
        merged = {**given, **_without_none(options)}
        merged["task"] = {**given.get("task", {}), **_without_none(task)}
        begun = beginning(merged)
        with Campaign.create(folder, begun.pool, begun.learner, **begun.options) as campaign:
            status = campaign.status()
            say(f"A campaign in {folder}: {status.n_items} items to choose from.")
            if status.n_duplicates:
                say(f"{status.n_duplicates} rows say the same as an earlier one: asked once.")
            next_step(status)


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def next_step(status: "Status") -> None:
    """Say what to type next."""
    say(f"Next: {status.next}")


@app.command()
def query(
    folder: Folder,
    n_instances: Annotated[
        int, typer.Option("--n-instances", "-n", help="Items to label.", min=1)
    ] = 50,
    model: Model = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse when fewer items are left.")
    ] = False,
    engine: Annotated[
        Engine | None, typer.Option(help="Who scores; without it, this process.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that score, with --engine.", min=1)] = 2,
    gpus: Annotated[float, typer.Option(help="GPUs that each of them takes.", min=0)] = 0,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster that runs; without it, one is started.")
    ] = None,
) -> None:
    """Choose the items whose labels are worth most; an interrupted query goes on where it was."""
    with opened(folder, model) as campaign:
        given: Any = None
        if engine is not None:
            from starlearn.distributed.cluster import RayEngine

            given = RayEngine(workers=workers, gpus=gpus, address=address)
        elif address is not None or gpus:
            raise InputError("--address and --gpus are for another engine: add --engine ray")
        batch = campaign.query(n_instances, strict=strict, engine=given)
        status = campaign.status()
        if batch:
            say(f"Round {status.round}: {len(batch)} items to label, most valuable first.")
            say(f"The first was chosen because: {batch[0].reason}")
        else:
            say("No item is left to ask for: every one in the pool has been spoken about.")
        next_step(status)


@app.command()
def label(
    folder: Folder,
    annotator: Annotator = "me",
    web: Annotated[bool, typer.Option("--web", help="In the browser instead.")] = False,
    port: Annotated[int, typer.Option(help="Of the page; 0: a free one.", min=0, max=65535)] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page, or only tell where.")
    ] = True,
) -> None:
    """Label the batch, in the terminal or the browser; each is saved before the next is shown."""
    with opened(folder) as campaign:
        if web:
            from starlearn.campaign.web.serving import serve

            saved = serve(campaign, annotator, port=port, browser=browser)
        elif port or not browser:
            raise InputError("--port and --no-browser go with --web.")
        else:
            from starlearn.cli.labelling import Session

            interactive = sys.stdin.isatty() and sys.stdout.isatty()
            saved = Session(campaign, annotator, make_console(), interactive).run()
        status = campaign.status()
        say(f"\n{saved} saved. {status.done} of the batch's {status.batch} items are done.")
        next_step(status)


@app.command()
def teach(folder: Folder, model: Model = None) -> None:
    """Train on all labels, publish the adapter, and end the round."""
    with opened(folder, model) as campaign:
        campaign.teach()
        _tell_taught(campaign)


def _tell_taught(campaign: "Campaign") -> None:
    record, status = campaign.history()[-1], campaign.status()
    loss = "" if record.train_loss is None else f", training loss {record.train_loss:.4f}"
    say(f"Round {record.round}: trained on {record.n_labels} labels{loss}.")
    next_step(status)


@app.command("status")
def status_command(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what state the campaign is in, and what to type next; changes nothing."""
    with opened_to_read(folder) as campaign:
        found, history = campaign.status(), campaign.history()
        if as_json:
            typer.echo(json.dumps({**asdict(found), "history": [asdict(r) for r in history]}))
            return
        say(f"{found.folder}: {found.n_labelled} of {found.n_items} items labelled.")
        for record in history:
            trained = "" if record.n_labels is None else f", trained on {record.n_labels} labels"
            say(f"Round {record.round}: {record.state}, {record.n_answered} answered{trained}")
        if found.batch and found.state != "published":
            say(f"Batch: {found.done} of {found.batch} done.")
        if found.skipped or found.flagged:
            say(f"Skipped: {found.skipped}. Flagged: {found.flagged}.")
        for name, count in found.annotators.items():
            say(f"Annotator {name}: {count} items")
        if found.error:
            say(f"The newest round failed: {found.error}")
        if found.holder:
            say(f"In use by {found.holder}")
        next_step(found)


@app.command()
def resume(folder: Folder, model: Model = None) -> None:
    """Go on with a query or a training that was interrupted; otherwise do nothing."""
    with opened(folder, model) as campaign:
        before = campaign.status()
        after = campaign.resume()
        if before.state == "training":
            _tell_taught(campaign)
        elif before.state == "scoring":
            say(f"Round {after.round}: {after.batch} items to label, most valuable first.")
            next_step(after)
        else:
            say("Nothing was interrupted.")
            next_step(after)
