"""The command line: all commands in one app. Heavy imports happen when a command runs."""

from typing import Annotated

import typer

from starlearn.cli import (
    campaign_commands,
    exchange_commands,
    maintenance,
    plan_command,
    report_command,
    run_commands,
    settings_commands,
    study_command,
)
from starlearn.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def show_version(show: bool) -> None:
    """Print the version and exit."""
    if show:
        typer.echo(f"starlearn {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Pick the prompts worth labelling, fine-tune in 4 bits, repeat."""


for commands in (
    run_commands,
    campaign_commands,
    exchange_commands,
    settings_commands,
    maintenance,
    report_command,
    study_command,
    plan_command,
):
    app.add_typer(commands.app)
