"""A failed call leaves an object as it was."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def unchanged_on_error(thing: Any, kept: Iterable[str] = ()) -> Iterator[None]:
    """Undo what a call has set when it fails, so that the same call can be made again.

    Attributes in `kept` stay as the call left them, because they cost much and decide nothing.
    """
    before = dict(vars(thing))
    try:
        yield
    except BaseException:  # Ctrl-C too
        stay = {name: vars(thing)[name] for name in kept if name in vars(thing)}
        thing.__dict__.clear()
        thing.__dict__.update(before | stay)
        raise
