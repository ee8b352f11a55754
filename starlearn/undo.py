"""All or nothing: a failed call undoes what it has set, a folder appears when it is complete."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlearn.errors import InputError


@contextmanager
def unchanged_on_error(thing: Any, kept: Iterable[str] = ()) -> Iterator[None]:
    """Undo what a call has set when it fails, so that the same call can be made again.

    Parameters
    ----------
    thing : object
    kept : iterable of str
        Attributes that stay as the call left them, because they cost much and decide nothing.
    """
    before = dict(vars(thing))
    try:
        yield
    except BaseException:  # Ctrl-C too
        stay = {name: vars(thing)[name] for name in kept if name in vars(thing)}
        thing.__dict__.clear()
        thing.__dict__.update(before | stay)
        raise


@contextmanager
def complete_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder to write to, which gets its name only when all is written.

    Parameters
    ----------
    folder : path
        The name. There must be nothing of that name yet, or an empty folder.

    Yields
    ------
    Path
        A folder beside it; it is removed when the writing fails or is interrupted.

    Raises
    ------
    InputError
        When there is something of that name already.
    """
    target = Path(folder).expanduser()
    if target.name in ("", ".."):
        raise InputError(f"{str(folder)!r:.100} is no name of a new folder. Nothing was written.")
    is_empty = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
    if (target.exists() or target.is_symlink()) and not is_empty:
        raise InputError(
            f"The folder {target} exists already. Choose a new one: nothing was written."
        )
    scratch = target.with_name(f".{target.name}.incomplete")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
