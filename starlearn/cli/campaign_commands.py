"""Commands of a campaign: starlearn init, query, label, teach, status, resume."""

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
from starlearn.storage.files import permission_errors

if TYPE_CHECKING:
    from starlearn.campaign.campaign import Campaign
    from starlearn.campaign.status import Status

app = typer.Typer()

Resolution = StrEnum("Resolution", ["majority", "latest", "unanimous"])
Engine = StrEnum("Engine", ["ray"])
WeightFormat = StrEnum("WeightFormat", ["nf4", "fp4", "none"])
LEVELS = {"error": "ERROR", "warning": "Warning", "note": "Note"}

Folder = Annotated[Path, typer.Argument(help="The campaign folder.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="Where the base model is now, if it moved.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
Annotator = Annotated[str, typer.Option("--annotator", "-a", help="Name of the annotator.")]


def command_line(*arguments: object) -> str:
    """Return a starlearn command, quoted for the shell."""
    return shlex.join(["starlearn", *map(str, arguments)])


def show(text: str) -> None:
    """Print text with control characters spelled out."""
    make_console().print(plain(text))


@contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """Report errors, warnings and Ctrl-C in plain text, with the next command after Ctrl-C."""

    def kept() -> str:
        from starlearn.campaign.campaign import Campaign
        from starlearn.campaign.teaching import interrupted_training
        from starlearn.errors import StarlearnError

        work = ""
        try:
            with Campaign.open(folder, read_only=True) as campaign:
                status = campaign.status()
                following = status.next
                if status.state == "training":
                    work = f" {interrupted_training(campaign)}"
                elif status.state == "scoring":
                    work = " Chunks that were scored are kept."
        except StarlearnError:
            following = command_line("status", folder)
        return f"All saved labels are kept.{work} Continue: {following}"

    with _reporting(kept):
        yield


@contextmanager
def _reporting(kept: Callable[[], str]) -> Iterator[None]:
    console = make_console(stderr=True)

    def show_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        console.print(plain(f"Note: {message}"))

    with exit_on_error(kept), permission_errors(), warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = show_warning
        yield


@contextmanager
def opened(folder: Path, model: str | None = None, to_read: bool = False) -> Iterator["Campaign"]:
    """Open a campaign for a command; `to_read`: the folder need not be writable."""
    with reporting(folder):
        from starlearn.campaign.campaign import Campaign

        try:
            campaign = Campaign.open(folder, model=model)
        except StorageError:
            if not to_read:
                raise
            campaign = Campaign.open(folder, model=model, read_only=True)
        with campaign:
            yield campaign


@app.command()
def init(
    folder: Folder,
    pool: Annotated[
        Path | None, typer.Option(help="The items: .jsonl, .csv, .parquet or Dataset.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id; default: embedded.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Template; \\n is a line break.")] = None,
    choices: Annotated[str | None, typer.Option(help="Closed set of answers: a,b,c")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="One answer, which may have commas; repeat it.")
    ] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Use the model's chat template.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message, with --chat.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Free-form answers of at most this many tokens.", min=1)
    ] = None,
    answer_pattern: Annotated[
        str | None, typer.Option(help="Regular expression of a free-form text's final answer.")
    ] = None,
    settings: Annotated[Path | None, typer.Option(help="TOML file with all settings.")] = None,
    quantization: Annotated[WeightFormat | None, typer.Option(help="Weights of the base.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random choices.", min=0)] = None,
    resolution: Annotated[
        Resolution | None, typer.Option(help="Which label counts where annotators differ.")
    ] = None,
    per_item: Annotated[int | None, typer.Option(help="Annotators per item.", min=1)] = None,
    extra_fields: Annotated[
        str | None, typer.Option(help="Fields to show in addition to the prompt's: a,b")
    ] = None,
) -> None:
    """Create a campaign in a new folder from a pool, a model, a prompt and the answers."""
    with _reporting(lambda: "Run the command again: an interrupted start does no harm."):
        from starlearn.campaign.campaign import Campaign
        from starlearn.campaign.settings_file import new_campaign, read_settings

        given = read_settings(settings) if settings else {}
        task = {
            "prompt": None if prompt is None else prompt.replace("\\n", "\n"),
            "choices": _choices(choices, choice),
            "chat": chat,
            "system": system,
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
        with Campaign.create(folder, **new_campaign(merged)) as campaign:
            status = campaign.status()
            show(f"New campaign in {folder}: {status.n_items} items in the pool.")
            show_task(campaign)
            if status.n_duplicates:
                show(f"{status.n_duplicates} rows are duplicates of earlier rows and are left out.")
            show_next(status)


def _choices(listed: str | None, single: list[str] | None) -> list[str] | None:
    if listed is not None and single:
        raise InputError("Use either --choices a,b,c or --choice a --choice b, not both.")
    return single or _split(listed)


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",")]


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def show_task(campaign: "Campaign") -> None:
    """Print model, prompt and answers."""
    task, choices = campaign.task, campaign.choices
    show(f"Model: {campaign.model}")
    chat = "Chat prompt" if task.get("chat") else "Prompt"
    show(f"{chat}: {json.dumps(task['prompt'], ensure_ascii=False)}")
    if task.get("system") is not None:
        show(f"System message: {json.dumps(task['system'], ensure_ascii=False)}")
    if choices is None:
        show(f"Answers: free text of at most {task['max_new_tokens']} tokens")
    else:
        more = f" and {len(choices) - 12} more" if len(choices) > 12 else ""
        show(f"Choices: {' | '.join(choices[:12])}{more}")


def show_next(status: "Status") -> None:
    """Print the next command."""
    show(f"Next: {status.next}")


@app.command()
def query(
    folder: Folder,
    n_instances: Annotated[
        int, typer.Option("--n-instances", "-n", help="Number of items to label.", min=1)
    ] = 50,
    model: Model = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if fewer are left.")] = False,
    engine: Annotated[Engine | None, typer.Option(help="Score in other processes.")] = None,
    workers: Annotated[int, typer.Option(help="Processes of --engine.", min=1)] = 2,
    gpus: Annotated[float, typer.Option(help="GPUs per process.", min=0)] = 0,
    address: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster; by default one is started.")
    ] = None,
) -> None:
    """Choose the items whose labels are worth most; an interrupted query continues."""
    with opened(folder, model) as campaign:
        given: Any = None
        if engine is not None:
            from starlearn.distributed.cluster import RayEngine

            given = RayEngine(workers=workers, gpus=gpus, address=address)
        elif address is not None or gpus:
            raise InputError("--address and --gpus need --engine ray.")
        batch = campaign.query(n_instances, strict=strict, engine=given)
        status = campaign.status()
        if batch:
            show(f"Round {status.round}: {len(batch)} items to label, most valuable first.")
            show(f"The first was chosen because: {batch[0].reason}")
        else:
            show("No item is left: every item of the pool has a response.")
        show_next(status)


@app.command()
def label(
    folder: Folder,
    annotator: Annotator = "me",
    web: Annotated[bool, typer.Option("--web", help="Label in the browser.")] = False,
    port: Annotated[
        int, typer.Option(help="Port of the page; 0 chooses a free one.", min=0, max=65535)
    ] = 0,
    browser: Annotated[
        bool,
        typer.Option("--browser/--no-browser", help="Open the page, or print its address only."),
    ] = True,
) -> None:
    """Label the batch in the terminal or the browser; each response is saved at once."""
    with opened(folder) as campaign:
        if web:
            from starlearn.campaign.web.serving import serve

            saved = serve(campaign, annotator, port=port, browser=browser)
        elif port or not browser:
            raise InputError("--port and --no-browser need --web.")
        else:
            from starlearn.cli.labelling import LabellingSession

            interactive = sys.stdin.isatty() and sys.stdout.isatty()
            saved = LabellingSession(campaign, annotator, make_console(), interactive).run()
        status = campaign.status()
        show(f"\n{saved} saved. {status.done} of the batch's {status.batch} items are done.")
        show_next(status)


@app.command()
def teach(
    folder: Folder,
    model: Model = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Train although items of the batch are not labelled.")
    ] = False,
) -> None:
    """Train on all labels, publish the adapter, and end the round."""
    with opened(folder, model) as campaign:
        before = campaign.status()
        campaign.teach(partial=partial)
        if waiting := before.batch - before.done:
            show(
                f"{waiting} of {before.batch} items left the batch with too few responses. Items "
                "without any can come back in a later query."
            )
        _print_training(campaign)


def _print_training(campaign: "Campaign") -> None:
    record, status = campaign.history()[-1], campaign.status()
    loss = "" if record.train_loss is None else f", training loss {record.train_loss:.4f}"
    show(f"Round {record.round}: trained on {record.n_labels} labels{loss}.")
    show_next(status)


@app.command("status")
def status_command(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the state of the campaign and the next command; changes nothing."""
    with opened(folder, to_read=True) as campaign:
        found, history = campaign.status(), campaign.history()
        if as_json:
            typer.echo(json.dumps({**asdict(found), "history": [asdict(r) for r in history]}))
            return
        show(f"{found.folder}: {found.n_labelled} of {found.n_items} items labelled.")
        show_task(campaign)
        for record in history:
            trained = "" if record.n_labels is None else f", trained on {record.n_labels} labels"
            show(f"Round {record.round}: {record.state}, {record.n_answered} answered{trained}")
        if found.batch and found.state != "published":
            show(f"Batch: {found.done} of {found.batch} done.")
        if found.skipped or found.flagged:
            show(f"Skipped: {found.skipped}. Flagged: {found.flagged}.")
        for name, count in found.annotators.items():
            show(f"Annotator {name}: {count} items")
        if found.error:
            show(f"The newest round failed: {found.error}")
        if found.holder:
            show(f"In use by {found.holder}")
        show_next(found)


@app.command()
def resume(folder: Folder, model: Model = None) -> None:
    """Continue an interrupted query or training; otherwise do nothing."""
    with opened(folder, model) as campaign:
        before = campaign.status()
        after = campaign.resume()
        if before.state == "training":
            _print_training(campaign)
        elif before.state == "scoring":
            show(f"Round {after.round}: {after.batch} items to label, most valuable first.")
            show_next(after)
        else:
            show("Nothing was interrupted.")
            show_next(after)
