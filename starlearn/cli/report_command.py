"""The command that writes a campaign's report: starlearn report."""

import os
from pathlib import Path
from typing import Annotated

import typer

from starlearn.cli.campaign_commands import Folder, Model, opened_to_read, say
from starlearn.errors import InputError, StorageError

app = typer.Typer()

NAME = "report.html"


@app.command()
def report(
    folder: Folder,
    to: Annotated[
        Path | None, typer.Option(help="Where to write; by default in the campaign's folder.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Labelled items, never taught: .jsonl or .csv.")
    ] = None,
    label_field: Annotated[str, typer.Option(help="Its field with the label.")] = "label",
    price_per_label: Annotated[float | None, typer.Option(help="Of each answer.")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Of annotators' time.")] = None,
    model: Model = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write what came of the campaign to one HTML file; labels and rounds stay as they are.

    The file needs no network. It holds texts and labels of the campaign: mind who gets it.
    """
    with opened_to_read(folder, model) as campaign:
        from starlearn.campaign.report.held_out import on_test_set, read_test_file
        from starlearn.campaign.report.page import Told, render
        from starlearn.campaign.report.people import Prices
        from starlearn.storage.files import write_file

        target = campaign.folder / NAME if to is None else to
        _require_free(target, overwrite)
        prices = Prices(price_per_label, price_per_hour)
        prices.check()
        told = Told(prices)
        if test is not None:
            items = read_test_file(campaign, test, label_field)
            told = Told(prices, test.name, on_test_set(campaign, items, say))
        write_file(target, render(campaign, told).encode())
        say(f"The report is in {target}. Open it in a browser.")
        say(f"Next: {campaign.status().next}")


def _require_free(target: Path, overwrite: bool) -> None:
    """Look at the place before anything is computed."""
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"{target} is no place for a file. Give one: --to {NAME}.")
    if target.exists() and not overwrite:
        raise InputError(f"{target} is there already. Give another name, or add --overwrite.")
    if not os.access(target.parent, os.W_OK):
        raise StorageError(
            f"{target.parent} cannot be written. Write the report elsewhere: --to {NAME}."
        )
