"""The command starlearn report."""

import os
from pathlib import Path
from typing import Annotated

import typer

from starlearn.cli.campaign_commands import Folder, Model, Overwrite, opened, show
from starlearn.errors import InputError, StorageError

app = typer.Typer()

NAME = "report.html"


@app.command()
def report(
    folder: Folder,
    to: Annotated[
        Path | None, typer.Option(help="Where to write it; by default in the campaign folder.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Labelled items, never used for training; a pool's formats.")
    ] = None,
    label_field: Annotated[str, typer.Option(help="Field of its labels.")] = "label",
    price_per_label: Annotated[float | None, typer.Option(help="Price of an answer.")] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Price of an hour.")] = None,
    model: Model = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a report of the campaign to one HTML file, which needs no network.

    The file holds texts and labels of the campaign. Take care with whom you share it.
    """
    with opened(folder, model, to_read=True) as campaign:
        from starlearn.campaign.report.annotators import Prices
        from starlearn.campaign.report.held_out import on_test_set, read_test_file
        from starlearn.campaign.report.page import ReportOptions, render
        from starlearn.storage.files import write_file

        target = campaign.folder / NAME if to is None else to
        _require_free(target, overwrite)
        prices = Prices(price_per_label, price_per_hour)
        prices.check()
        options = ReportOptions(prices)
        if test is not None:
            items = read_test_file(campaign, test, label_field)
            options = ReportOptions(prices, test.name, on_test_set(campaign, items, show))
        write_file(target, render(campaign, options).encode())
        show(f"The report is in {target}. Open it in a browser.")
        show(f"Next: {campaign.status().next}")


def _require_free(target: Path, overwrite: bool) -> None:
    """Check the path of the report before anything is computed."""
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(
            f"{target} is a folder, or its parent folder does not exist. Choose a file: "
            f"--to {NAME}."
        )
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already. Choose another name, or add --overwrite.")
    if not os.access(target.parent, os.W_OK):
        raise StorageError(
            f"{target.parent} is not writable. Write the report elsewhere: --to {NAME}."
        )
