"""The commands that exchange: starlearn export and import by file, push and pull by server."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starlearn.cli.campaign_commands import (
    Annotator,
    Folder,
    next_step,
    opened,
    opened_to_read,
    say,
    typed,
)
from starlearn.errors import InputError

if TYPE_CHECKING:
    from starlearn.campaign.importing import Imported

app = typer.Typer()

Predictions = StrEnum("Predictions", ["stored", "computed", "none"])
Url = Annotated[
    str | None, typer.Option(help="Address of the server; by default that of the last push.")
]
ProjectNumber = Annotated[
    int | None, typer.Option(help="Of a project; by default that of the last push.", min=1)
]
Relabel = Annotated[
    list[str] | None, typer.Option(help="Spelling in there = choice; may be repeated.")
]


@app.command("export")
def export_command(
    folder: Folder,
    file: Annotated[
        Path, typer.Argument(help="Ends in .csv, .jsonl or .json.", show_default=False)
    ],
    number: Annotated[
        int | None, typer.Option("--round", help="Of which round; by default the newest.")
    ] = None,
    annotator: Annotated[str | None, typer.Option(help="Whose labels to write.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write the batch to a file, to be labelled elsewhere; fill in the column label.

    A .json file holds tasks for Label Studio, of the items that still wait for a word.
    """
    with opened_to_read(folder) as campaign:
        from starlearn.campaign.exchange import export_batch

        tasks = file.suffix.lower() == ".json"
        interface = file.with_suffix(".xml")
        taken = [path for path in (file, *([interface] if tasks else [])) if path.exists()]
        if taken and not overwrite:
            raise InputError(
                f"{taken[0]} is there already, and may hold labels. Import them first: "
                f"{typed('import', folder, file)}; or give another name, or add --overwrite."
            )
        count = export_batch(campaign, file, number, annotator)
        if tasks:
            say(f"{count} tasks are in {file}. Import them into a project of Label Studio, after")
            say(f"{interface} is pasted in Settings > Labeling Interface > Code.")
            say(f"Next, with its JSON export: {typed('import', folder, 'export.json')}")
            return
        say(f"{count} items are in {file}. Fill in the column label, then type:")
        who = [] if annotator is None else ["-a", annotator]
        say(f"Next: {typed('import', folder, file, *who)}")


@app.command("import")
def import_command(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="A .csv, .jsonl or .json file.", show_default=False)],
    annotator: Annotator = "me",
    encoding: Annotated[str, typer.Option(help="Of the file.")] = "utf-8",
    relabel: Relabel = None,
) -> None:
    """Store the labels of a file: all of them, or none with the lines to mend.

    A .json file is what Label Studio exports as JSON.
    """
    with opened(folder) as campaign:
        from starlearn.campaign.exchange import import_labels

        done = import_labels(
            campaign, file, annotator, encoding=encoding, relabel=_meanings(relabel)
        )
        _tell(done, "rows")
        next_step(campaign.status())


@app.command()
def push(
    folder: Folder,
    url: Url = None,
    project: ProjectNumber = None,
    new: Annotated[bool, typer.Option("--new", help="Make a new project.")] = False,
    predictions: Annotated[
        Predictions,
        typer.Option(
            help="Show annotators what the model said when it chose (stored), what the newest "
            "adapter says now (computed), or no answer (none)."
        ),
    ] = Predictions.stored,
    number: Annotated[
        int | None, typer.Option("--round", help="Of which round; by default the newest.")
    ] = None,
) -> None:
    """Send the batch to Label Studio; again, and only what is missing there is sent.

    The key comes from the environment variable LABEL_STUDIO_API_KEY and is kept nowhere.
    """
    with opened(folder) as campaign:
        from starlearn.campaign.labelstudio.sync import push as send

        done = send(
            campaign, url, project=project, new=new, predictions=predictions.value, round_id=number
        )
        same = f", {done.n_same} were there already" if done.n_same else ""
        say(f"{done.n_new} tasks sent{same}: {done.link.url}/projects/{done.link.project}")
        if done.n_new:
            say(f"{done.n_predictions} of them show an answer of the model.")
        say(f"Next: {typed('pull', folder)}")


@app.command()
def pull(
    folder: Folder,
    url: Url = None,
    project: ProjectNumber = None,
    relabel: Relabel = None,
) -> None:
    """Store what annotators said in Label Studio: all of it, or none with what to correct.

    The key comes from the environment variable LABEL_STUDIO_API_KEY and is kept nowhere.
    """
    with opened(folder) as campaign:
        from starlearn.campaign.labelstudio.sync import pull as fetch

        done = fetch(campaign, url, project=project, relabel=_meanings(relabel))
        _tell(done, "annotations")
        next_step(campaign.status())


def _meanings(relabel: list[str] | None) -> dict[str, str]:
    """Return what spellings mean, as --relabel says it."""
    spellings = [pair.partition("=") for pair in relabel or []]
    if not all(equals and meant.strip() for _, equals, meant in spellings):
        raise InputError('--relabel takes SPELLING=CHOICE, as in --relabel "Yes=yes".')
    return {spelling.strip(): meant.strip() for spelling, _, meant in spellings}


def _tell(done: "Imported", rows: str) -> None:
    """Say what an import did."""
    skips = f", {done.n_skips} skips" if done.n_skips else ""
    same = f", {done.n_same} were there already" if done.n_same else ""
    still = f", {done.n_open} {rows} have no label yet" if done.n_open else ""
    say(f"{done.n_new} labels saved{skips}{same}{still}.")
    for note in done.notes:
        say(f"Note: {note}")
