"""The server of the page: it listens on this machine only and runs until Ctrl-C."""

import errno
import os
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
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
BACKLOG = 100
"""Connections that wait to be accepted."""
SHUTDOWN_SECONDS = 5
"""Time to finish a response that is being written at the end."""


def serve(campaign: Campaign, annotator: str, *, port: int = 0, browser: bool = True) -> int:
    """Serve the page until Ctrl-C, and return the number of saved responses.

    `annotator` is the initial name in the form for the annotator's name. Port 0 is a free port.
    """
    _require_libraries()
    from starlearn.campaign.web.access import AccessTokens
    from starlearn.campaign.web.routes import make_app
    from starlearn.campaign.web.service import AnnotationService

    name = checked_name(annotator)
    require_batch(campaign)
    with listening(port) as listener:
        port = listener.getsockname()[1]
        tokens, service = AccessTokens(port), AnnotationService(campaign)
        server = make_server(make_app(service, tokens, name))
        address = f"http://{ADDRESS}:{port}/?token={tokens.token}"
        show = make_console().print
        show(f"Label in the browser: {address}")
        show("Several annotators can open it, each with their own name. Ctrl-C ends it.")
        with _opened(address, campaign.folder, browser), suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
        return service.n_saved


def make_server(app: "Starlette") -> "uvicorn.Server":
    """Make the server of an application; its `run` takes the sockets."""
    import uvicorn

    from starlearn.campaign.web.connections import LimitedConnection

    config = uvicorn.Config(
        app,
        http=LimitedConnection,
        backlog=BACKLOG,
        access_log=False,  # it would show the token
        log_config=None,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """Listen at a port that only this machine can reach."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((ADDRESS, port))
            listener.listen()
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise InputError(
                f"Port {port} of {ADDRESS} {'is in use' if taken else 'cannot be used'} "
                f"({error.strerror}). Use another --port, or leave it out for a free one."
            ) from error
        yield listener


@contextmanager
def _opened(address: str, folder: Path, browser: bool) -> Iterator[None]:
    """Open a browser at an address with a token.

    Other users of the machine can read the command line of a browser. It therefore receives a file
    that only this user can read, and the file leads to the address. The file is in the campaign's
    folder, because browsers in a sandbox may not read hidden folders or those of other programs.
    """
    without_display = sys.platform == "linux" and not any(map(os.environ.get, DISPLAYS))
    if not browser or without_display:  # a browser in the terminal would catch Ctrl-C
        yield
        return
    page = f'<!DOCTYPE html><meta http-equiv="refresh" content="0; url={address}">\n'
    with tempfile.NamedTemporaryFile(  # readable by this user alone
        "w", dir=folder, prefix="open-", suffix=".html", encoding="ascii"
    ) as file:
        file.write(page)
        file.flush()
        target = Path(file.name).as_uri()
        threading.Thread(target=webbrowser.open, args=(target,), daemon=True).start()
        yield


def _require_libraries() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"Labelling in the browser needs {', '.join(missing)}. Type: "
            "pip install 'starlearn[web]'. Without it: starlearn label FOLDER."
        )
