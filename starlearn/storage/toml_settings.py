"""Settings in TOML files: read as UTF-8, checked by pydantic, with errors that name the fix."""

import inspect
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from starlearn.errors import InputError, listed


class Strict(BaseModel):
    """A table of settings: unknown keys are errors, and values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


S = TypeVar("S", bound=Strict)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: is not TOML in UTF-8 ({error}). Fix the file.") from error


def checked_settings(kind: type[S], values: Mapping[str, Any], source: str) -> S:
    """Return settings as an instance of their class; errors name `source` and each wrong key."""
    try:
        return kind(**values)
    except ValidationError as error:
        complaints = []
        for one in error.errors(include_url=False):
            key, message = ".".join(map(str, one["loc"])) or "the settings", one["msg"]
            if one["type"] == "extra_forbidden" and len(one["loc"]) == 1:
                message = unknown_setting(key, kind.model_fields)
            complaints.append(f"{key}: {message}")
        raise InputError(f"{source}: {listed(complaints)}. Fix these settings.") from None


def make_part(name: str, kind: Any, values: Mapping[str, Any]) -> Any:
    """Return an instance of a settings class such as LoRA or Training, checked."""
    known = inspect.signature(kind).parameters
    for key in values:
        if key not in known:
            raise InputError(f"[{name}] {key}: {unknown_setting(key, known)}.")
    part = kind(**values)
    part.check()
    return part


def unknown_setting(name: str, known: Iterable[str]) -> str:
    """Return the message about an unknown setting: the closest name, or all names."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
    return f"unknown setting ({hint})"
