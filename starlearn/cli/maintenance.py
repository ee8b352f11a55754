"""The commands that look after a campaign: starlearn add-choice, backup, doctor."""

import json
from pathlib import Path
from typing import Annotated

import typer

from starlearn.cli.campaign_commands import LEVELS, Folder, Model, opened, opened_to_read, say, told
from starlearn.errors import InputError

app = typer.Typer()

DAMAGED = 4
"""The exit code when something cannot be used."""


@app.command("add-choice")
def add_choice(
    folder: Folder,
    choice: Annotated[str, typer.Argument(help="The new answer.", show_default=False)],
    model: Model = None,
) -> None:
    """Add an answer to those there are; the next training learns it."""
    with opened(folder, model) as campaign:
        campaign.add_choice(choice.strip())
        say(f"There are {len(campaign.choices or [])} choices now.")


@app.command()
def backup(
    folder: Folder,
    file: Annotated[
        Path | None, typer.Argument(help="By default in the campaign's folder of backups.")
    ] = None,
) -> None:
    """Copy the labels while others work; copying the file by hand may catch half a change."""
    with opened_to_read(folder) as campaign:
        if file is not None and file.exists():
            raise InputError(f"{file} is there already. Give a name that is free.")
        made = campaign.backup(None if file is None else file.absolute())
        say(f"The labels are copied to {made}.")


@app.command()
def doctor(
    folder: Annotated[
        Path | None, typer.Argument(help="A campaign's folder; without it, the machine.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Remove what was never published.")] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Take the labels from the newest sound backup.")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="With --restore: take this backup.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Without a folder: tell of this model's prompts.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was found for other programs.")
    ] = False,
) -> None:
    """Look for what is wrong and say what to do; without a folder, show the machine."""
    if folder is None:
        with told(Path()):
            if fix or restore or source is not None:
                raise InputError("Say which campaign: starlearn doctor FOLDER --fix (or --restore)")
            from starlearn.cli.environment import show_environment

            if not show_environment(Path.cwd(), model, as_json):
                raise typer.Exit(DAMAGED)
        return
    if model is not None:
        with told(folder):
            raise InputError("--model is for the machine's table: leave the folder out.")
    if restore or source is not None:
        with told(folder):
            _restore(folder, restore, source)
    with opened(folder) if fix else opened_to_read(folder) as campaign:
        found = campaign.doctor(fix=fix)
        if as_json:
            print(json.dumps([vars(finding) for finding in found], indent=2))
        for finding in [] if as_json else found:
            say(f"{LEVELS[finding.level]}: {finding.what}")
            if finding.fix:
                say(f"  {finding.fix}")
        if not found and not as_json:
            say(f"All is well with {folder}.")
        if any(finding.level == "error" for finding in found):
            raise typer.Exit(DAMAGED)


def _restore(folder: Path, restore: bool, source: Path | None) -> None:
    from starlearn.campaign.restore import restore as put_back

    if not restore:
        raise InputError("--from goes with --restore: starlearn doctor FOLDER --restore --from ...")
    if source is not None and not source.is_file():
        raise InputError(f"{source} is no file. Give a backup, or leave --from out.")
    chosen = put_back(folder, source)
    say(f"The labels are those of {chosen}. What was there before is in {folder}/damaged-...")
