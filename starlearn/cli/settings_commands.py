"""Commands that change a campaign's settings: starlearn set, add-choice, remove-choice."""

import tomllib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starlearn.cli.campaign_commands import Folder, Model, opened, show
from starlearn.errors import InputError

if TYPE_CHECKING:
    from starlearn.campaign.campaign import Campaign

app = typer.Typer()

Choice = Annotated[str, typer.Argument(help="The answer.", show_default=False)]


@app.command("set")
def set_settings(
    folder: Folder,
    changes: Annotated[
        list[str], typer.Argument(help="As in training.learning_rate=3e-4", show_default=False)
    ],
) -> None:
    """Change settings of adapter, acquisition or training for the next query and training."""
    with opened(folder) as campaign:
        known = len(campaign.changes())
        campaign.set_params(**dict(map(_parameter, changes)))
        new = campaign.changes()[known:]
        for change in new:
            show(f"{change.setting}: {change.before} -> {change.after}")
        if not new:
            show("These settings are in use already.")


def _parameter(change: str) -> tuple[str, Any]:
    """Return a setting as a parameter of `set_params`, and its value."""
    name, equals, text = (part.strip() for part in change.partition("="))
    if not equals or not name or not text:
        raise InputError(
            f"{change!r} is not a setting with its value. Type: starlearn set FOLDER "
            "training.learning_rate=3e-4; null means None."
        )
    if text == "null":
        return name.replace(".", "__"), None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a word, as in acquisition.measure=entropy
    return name.replace(".", "__"), value


@app.command("add-choice")
def add_choice(folder: Folder, choice: Choice, model: Model = None) -> None:
    """Add an answer to the choices; the next training learns it."""
    with opened(folder, model) as campaign:
        campaign.add_choice(choice.strip())
        _show_choices(campaign)


@app.command("remove-choice")
def remove_choice(folder: Folder, choice: Choice) -> None:
    """Remove an answer from the choices, as after a typing error, if no label is that answer."""
    with opened(folder) as campaign:
        campaign.remove_choice(choice.strip())
        _show_choices(campaign)


def _show_choices(campaign: "Campaign") -> None:
    choices = campaign.choices or []
    show(f"There are now {len(choices)} choices:")
    for choice in choices:
        show(f"  {choice}")
