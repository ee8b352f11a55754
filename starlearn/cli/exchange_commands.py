"""Commands that exchange labels: starlearn export, import, push, pull."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starlearn.cli.campaign_commands import (
    Annotator,
    Folder,
    Overwrite,
    command_line,
    opened,
    show,
    show_next,
)
from starlearn.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlearn.campaign.importing import ImportResult

app = typer.Typer()

Predictions = StrEnum("Predictions", ["stored", "computed", "none"])
Url = Annotated[
    str | None,
    typer.Option(
        help="Address of the server; by default that of the last push. Give it once on each "
        "machine: the key goes only to addresses that you have confirmed."
    ),
]
ProjectNumber = Annotated[
    int | None, typer.Option(help="Number of a project; by default that of the last push.", min=1)
]
RoundNumber = Annotated[
    int | None, typer.Option("--round", help="Which round; by default the newest.")
]
Relabel = Annotated[list[str] | None, typer.Option(help="SPELLING=CHOICE; can be repeated.")]


@app.command("export")
def export_command(
    folder: Folder,
    file: Annotated[
        Path, typer.Argument(help="A new .csv, .jsonl or .json file.", show_default=False)
    ],
    number: RoundNumber = None,
    annotator: Annotated[str | None, typer.Option(help="Write this annotator's labels.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write the batch to a file with an empty column label, to be labelled elsewhere.

    A .json file holds the items that still need responses, as tasks for Label Studio.
    """
    with opened(folder, to_read=True) as campaign:
        from starlearn.campaign.exchange import export_batch

        tasks = file.suffix.lower() == ".json"
        interface = file.with_suffix(".xml")
        taken = [path for path in (file, *([interface] if tasks else [])) if path.exists()]
        if taken and not overwrite:
            raise InputError(
                f"{taken[0]} exists already and may hold labels. Import them first: "
                f"{command_line('import', folder, file)}; or choose another name, or add "
                "--overwrite."
            )
        count = export_batch(campaign, file, number, annotator)
        if tasks:
            show(f"{count} tasks are in {file}. In a project of Label Studio, paste {interface} in")
            show("Settings > Labeling Interface > Code, then import the tasks.")
            show(f"Next, with the JSON export: {command_line('import', folder, 'export.json')}")
            return
        show(f"{count} items are in {file}. Fill in the column label, then type:")
        option = [] if annotator is None else ["-a", annotator]
        show(f"Next: {command_line('import', folder, file, *option)}")


@app.command("import")
def import_command(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="A .csv, .jsonl or .json file.", show_default=False)],
    annotator: Annotator = "me",
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of the file; default: UTF-8, else cp1252.")
    ] = None,
    relabel: Relabel = None,
) -> None:
    """Store the labels of a file: all of them, or none with the lines to fix.

    A .json file is a JSON export of Label Studio.
    """
    with opened(folder) as campaign:
        from starlearn.campaign.exchange import import_labels

        done = import_labels(
            campaign, file, annotator, encoding=encoding, relabel=_spellings(relabel)
        )
        _print_result(done, "rows")
        show_next(campaign.status())


@app.command()
def push(
    folder: Folder,
    url: Url = None,
    project: ProjectNumber = None,
    new: Annotated[bool, typer.Option("--new", help="Make a new project.")] = False,
    predictions: Annotated[
        Predictions,
        typer.Option(
            help="Show annotators the model's answers from the query (stored), answers of the "
            "newest adapter (computed), or none."
        ),
    ] = Predictions.stored,
    number: RoundNumber = None,
) -> None:
    """Send the batch to Label Studio; a second push sends only what is missing.

    The key comes from the environment variable LABEL_STUDIO_API_KEY and is never stored.
    """
    with opened(folder) as campaign:
        from starlearn.campaign.labelstudio.sync import push as send

        done = send(
            campaign,
            url,
            project=project,
            new=new,
            predictions=predictions.value,
            round_id=number,
            confirm=_confirm(),
        )
        same = f", {done.n_same} were there already" if done.n_same else ""
        show(f"{done.n_new} tasks sent{same}: {done.link.url}/projects/{done.link.project}")
        if done.n_new:
            show(f"{done.n_predictions} of them show an answer of the model.")
        show(f"Next: {command_line('pull', folder)}")


@app.command()
def pull(
    folder: Folder,
    url: Url = None,
    project: ProjectNumber = None,
    relabel: Relabel = None,
) -> None:
    """Store the annotations of Label Studio: all of them, or none with those to correct.

    The key comes from the environment variable LABEL_STUDIO_API_KEY and is never stored.
    """
    with opened(folder) as campaign:
        from starlearn.campaign.labelstudio.sync import pull as fetch

        done = fetch(
            campaign, url, project=project, relabel=_spellings(relabel), confirm=_confirm()
        )
        _print_result(done, "annotations")
        show_next(campaign.status())


def is_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _confirm() -> "Callable[[str], bool] | None":
    """Return a function that asks about an address; None without a terminal."""
    if not is_terminal():
        return None

    def ask(address: str) -> bool:
        show(f"The campaign names the server {address!a}. You have not used it on this machine.")
        show("Whoever runs that server receives your key and can use it.")
        return typer.confirm("Send the key there?", default=False)

    return ask


def _spellings(relabel: list[str] | None) -> dict[str, str]:
    """Return choices by their spellings, from --relabel."""
    pairs = [pair.partition("=") for pair in relabel or []]
    if not all(equals and choice.strip() for _, equals, choice in pairs):
        raise InputError('--relabel takes SPELLING=CHOICE, as in --relabel "Yes=yes".')
    return {spelling.strip(): choice.strip() for spelling, _, choice in pairs}


def _print_result(done: "ImportResult", rows: str) -> None:
    """Print the counts and notes of an import."""
    skips = f", {done.n_skips} skips" if done.n_skips else ""
    same = f", {done.n_same} were there already" if done.n_same else ""
    still = f", {done.n_open} {rows} have no label yet" if done.n_open else ""
    show(f"{done.n_new} labels saved{skips}{same}{still}.")
    for note in done.notes:
        show(f"Note: {note}")
