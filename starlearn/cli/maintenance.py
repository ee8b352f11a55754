"""Commands that maintain a campaign: starlearn backup, doctor."""

import json
from pathlib import Path
from typing import Annotated

import typer

from starlearn.cli.campaign_commands import (
    LEVELS,
    Folder,
    opened,
    reporting,
    show,
)
from starlearn.errors import InputError

app = typer.Typer()

DAMAGED = 4
"""Exit code when a file of the campaign cannot be used."""


@app.command()
def backup(
    folder: Folder,
    file: Annotated[
        Path | None, typer.Argument(help="By default a file in the campaign's backup folder.")
    ] = None,
) -> None:
    """Copy the label store; this is safe while others label, a plain file copy is not."""
    with opened(folder, to_read=True) as campaign:
        if file is not None and file.exists():
            raise InputError(f"{file} exists already. Choose another name.")
        made = campaign.backup(None if file is None else file.absolute())
        show(f"The labels are copied to {made}.")


@app.command()
def doctor(
    folder: Annotated[
        Path | None, typer.Argument(help="A campaign folder; without it, the machine.")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Remove what was never published.")] = False,
    restore: Annotated[
        bool, typer.Option("--restore", help="Restore the labels from the newest intact backup.")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="With --restore: use this backup.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Without a folder: check this model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a campaign folder and show remedies; without a folder, check the machine."""
    if folder is None:
        with reporting(Path()):
            if fix or restore or source is not None:
                raise InputError("Name the campaign: starlearn doctor FOLDER --fix (or --restore)")
            from starlearn.cli.environment import show_environment

            if not show_environment(Path.cwd(), model, as_json):
                raise typer.Exit(DAMAGED)
        return
    if model is not None:
        with reporting(folder):
            raise InputError("--model is for the check of the machine. Leave out the folder.")
    if restore or source is not None:
        with reporting(folder):
            _restore(folder, restore, source)
    with opened(folder, to_read=not fix) as campaign:
        found = campaign.doctor(fix=fix)
        if as_json:
            print(json.dumps([vars(finding) for finding in found], indent=2))
        for finding in [] if as_json else found:
            show(f"{LEVELS[finding.level]}: {finding.what}")
            if finding.fix:
                show(f"  {finding.fix}")
        if not found and not as_json:
            show(f"Nothing is wrong with {folder}.")
        if any(finding.level == "error" for finding in found):
            raise typer.Exit(DAMAGED)


def _restore(folder: Path, restore: bool, source: Path | None) -> None:
    from starlearn.campaign.restore import restore as restore_labels

    if not restore:
        raise InputError("--from needs --restore: starlearn doctor FOLDER --restore --from ...")
    if source is not None and not source.is_file():
        raise InputError(f"{source} is not a file. Name a backup, or leave out --from.")
    done = restore_labels(folder, source)
    replaced = folder / done.replaced.name
    show(f"The labels were restored from {done.source}. The earlier files are in {replaced}.")
