"""The page served from this machine to this machine: a port, an address with a token, Ctrl-C."""

import errno
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlearn.campaign.annotation import require_batch
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.responses import checked_name
from starlearn.console import make_console
from starlearn.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

ADDRESS = "127.0.0.1"
NEEDED = ("starlette", "uvicorn", "python_multipart")
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
PATIENCE = 5
"""Seconds that a word which is being written has at the end."""


def serve(campaign: Campaign, annotator: str, *, port: int = 0, browser: bool = True) -> int:
    """Let annotators label in the browser until Ctrl-C, and return how many words were saved.

    Parameters
    ----------
    campaign : Campaign
    annotator : str
        The name that browsers are offered.
    port : int
        0 for a free one.
    browser : bool
        Open the page.

    Raises
    ------
    InputError
        When there is no batch, or the port is taken.
    CampaignLockedError
        When another process trains or queries.
    MissingDependencyError
        When starlearn was installed without its extra `web`.
    """
    _require_libraries()
    from starlearn.campaign.web.access import Door
    from starlearn.campaign.web.routes import make_app
    from starlearn.campaign.web.service import Desk

    name = checked_name(annotator)
    require_batch(campaign)
    with listening(port) as listener:
        port = listener.getsockname()[1]
        door, desk = Door(port), Desk(campaign)
        server = make_server(make_app(desk, door, name))
        tell = make_console().print
        tell(f"Label in the browser: {_address(port, door.token)}")
        tell("Several annotators may open it, each with a name of their own. Ctrl-C ends it.")
        if browser:
            _open(_address(port, door.ticket()))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
        return desk.saved


def make_server(app: "Starlette") -> "uvicorn.Server":
    """Make the server of an application; its `run` takes the sockets to listen at."""
    import uvicorn

    config = uvicorn.Config(
        app,
        access_log=False,  # it would show the token
        log_config=None,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=PATIENCE,
    )
    return uvicorn.Server(config)


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """Take a port of this machine, seen from this machine alone.

    Raises
    ------
    InputError
        When the port is taken or not for everyone.
    """
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
            listener.listen()
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise InputError(
                f"Port {port} of {ADDRESS} {'is in use' if taken else 'cannot be had'} "
                f"({error.strerror}). Leave --port out for a free one, or give another."
            ) from error
        yield listener


def _address(port: int, token: str) -> str:
    return f"http://{ADDRESS}:{port}/?token={token}"


def _open(address: str) -> None:
    if sys.platform == "linux" and not any(map(os.environ.get, DISPLAYS)):
        return  # what is left is a browser in the terminal, which would take Ctrl-C from us
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _require_libraries() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"Labelling in the browser needs {', '.join(missing)}. Type: "
            "pip install 'starlearn[web]'. Without it: starlearn label FOLDER."
        )
