"""Addresses of servers that this user has confirmed on this machine, in the user's own settings."""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from typer import get_app_dir

from starlearn.errors import StorageError
from starlearn.storage.files import make_folder, write_file

FILE = "labelstudio_servers.json"


def confirmed_file() -> Path:
    """Return the file with the confirmed addresses of each machine."""
    return Path(get_app_dir("starlearn")) / FILE


def is_confirmed(url: str) -> bool:
    """Whether this user has confirmed an address on this machine."""
    return url in _addresses(_read(), socket.gethostname())


def remember(url: str) -> None:
    """Store that this user has confirmed an address on this machine."""
    machine, known = socket.gethostname(), _read()
    before = _addresses(known, machine)
    if url in before:
        return
    path = confirmed_file()
    content = json.dumps({**known, machine: sorted({*before, url})}, indent=1)
    # Where the home folder cannot be written, the address is confirmed for this command only.
    with suppress(StorageError):
        make_folder(path.parent)
        write_file(path, content.encode())


def _read() -> dict[str, Any]:
    """Return the content; empty where the file is missing, damaged, or not the user's own."""
    path = confirmed_file()
    try:
        status = path.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _addresses(known: dict[str, Any], machine: str) -> list[str]:
    found = known.get(machine)
    return [url for url in found if isinstance(url, str)] if isinstance(found, list) else []
