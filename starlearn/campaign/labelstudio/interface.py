"""The labelling interface of a project as XML: the item's fields, and choices or a text field."""

import re
from collections.abc import Iterable
from html import escape
from xml.etree import ElementTree

from starlearn.campaign.annotation import has_single_keys, shortcuts
from starlearn.campaign.items import composed
from starlearn.errors import InputError, listed

CONTROL = "label"
"""The name of the control that holds the answer."""
OWN_KEYS = ("id", "campaign", "round", "place", "score", "why", CONTROL)
"""Keys of a task's data that an item's field must not use."""

PLAIN_KEY = re.compile(r"(?!field_\d+\Z)[A-Za-z_][A-Za-z0-9_]*")
VARIABLE = re.compile(r"\$[\w\[\].{}]")
"""Text that Label Studio reads as a reference to the task's data, also within a choice."""
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
EMPTY = "<View></View>"


def keys_of(names: Iterable[str]) -> dict[str, str]:
    """Return the key in a task's data of each field of an item.

    Examples
    --------
    >>> keys_of(["question", "id", "a b"])
    {'a b': 'field_1', 'id': 'field_2', 'question': 'question'}
    """
    names = sorted(names)
    plain = [name for name in names if PLAIN_KEY.fullmatch(name) and name not in OWN_KEYS]
    others = (name for name in names if name not in plain)
    numbered = {name: f"field_{number}" for number, name in enumerate(others, start=1)}
    return {name: numbered.get(name, name) for name in names}


def interface(names: Iterable[str], choices: list[str] | None) -> str:
    """Return the labelling interface as XML; without choices, its answers are free-form."""
    keys = keys_of(names)
    view = ElementTree.Element("View")
    for name, key in keys.items():
        if len(keys) > 1:
            ElementTree.SubElement(view, "Header", value=NOT_XML.sub("", name).replace("$", ""))
        ElementTree.SubElement(view, "Text", name=key, value=f"${key}")
    where = {"name": CONTROL, "toName": next(iter(keys.values())), "required": "true"}
    if choices is None:
        how = {"maxSubmissions": "1", "editable": "true", "rows": "4"}
        ElementTree.SubElement(view, "TextArea", where | how)
    else:
        how = {"choice": "single", "showInline": "true"}
        control = ElementTree.SubElement(view, "Choices", where | how)
        _add(control, choices)
    return ElementTree.tostring(view, encoding="unicode")


def extended(config: str, names: Iterable[str], choices: list[str] | None) -> str | None:
    """Return an interface with the choices that it lacks; None when it lacks nothing."""
    view = _parsed(config)
    if not len(view):
        return interface(names, choices)
    tag = "TextArea" if choices is None else "Choices"
    control = next((found for found in view.iter(tag) if found.get("name") == CONTROL), None)
    if control is None:
        raise InputError(
            f'The labelling interface of the project has no <{tag} name="{CONTROL}">, so answers '
            "could not be read back. Add one in Settings > Labeling Interface, or make a new "
            "project: push with --new."
        )
    there = {composed(choice) for choice in _choices(control)}
    lacking = [choice for choice in choices or [] if composed(choice) not in there]
    if not lacking:
        return None
    _add(control, lacking)
    return ElementTree.tostring(view, encoding="unicode")


def _add(control: ElementTree.Element, choices: list[str]) -> None:
    wrong = [repr(choice) for choice in choices if NOT_XML.search(choice)]
    if wrong:
        raise InputError(
            f"These choices hold control characters, which Label Studio's interface cannot "
            f"hold: {listed(wrong)}. Label them in the terminal: starlearn label FOLDER."
        )
    for choice in choices:
        shown = {}
        if VARIABLE.search(choice):  # shown and stored unchanged
            shown = {"alias": choice, "html": escape(choice)}
        ElementTree.SubElement(control, "Choice", {"value": choice, **shown})
    _set_keys(control)


def _set_keys(control: ElementTree.Element) -> None:
    """Make the numbers that choices show their keys; Label Studio's own keys are the places."""
    choices = _choices(control)
    numbers = list(shortcuts(choices)) if has_single_keys(choices) else []
    places = [str(place) for place in range(1, len(choices) + 1)]
    for place, choice in enumerate(control.iter("Choice")):
        if numbers and numbers != places:
            choice.set("hotkey", numbers[place])
        elif choice.get("hotkey", "").isdecimal():  # from before a choice was added
            del choice.attrib["hotkey"]


def _choices(control: ElementTree.Element) -> list[str]:
    return [found.get("alias") or found.get("value") or "" for found in control.iter("Choice")]


def _parsed(config: str) -> ElementTree.Element:
    if "<!DOCTYPE" in config or "<!ENTITY" in config:
        raise InputError(
            "The labelling interface of the project declares XML entities, which are not read."
        )
    try:
        return ElementTree.fromstring(config or EMPTY)  # noqa: S314 - without entities
    except ElementTree.ParseError as error:
        raise InputError(
            f"The labelling interface of the project is not XML ({error}). Fix it in Settings > "
            "Labeling Interface."
        ) from error
