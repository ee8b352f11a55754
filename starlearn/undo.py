"""All or nothing: what a call has set on an object is undone when the call fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def unchanged_on_error(thing: Any) -> Iterator[None]:
    """Undo what a call has set when it fails, so that the same call can be made again."""
    before = dict(vars(thing))
    try:
        yield
    except BaseException:  # Ctrl-C too
        thing.__dict__.clear()
        thing.__dict__.update(before)
        raise
