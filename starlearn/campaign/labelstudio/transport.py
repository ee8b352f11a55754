"""HTTP transport to a Label Studio server with limits on the size and depth of responses."""

from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from starlearn.campaign.labelstudio.payload import parsed
from starlearn.errors import ServerError

LARGEST = 128 * 1024**2
"""Largest response in bytes."""


class LimitedTransport(httpx.BaseTransport):
    """A transport that accepts responses up to a size, and JSON up to a depth.

    The client parses a response before our code sees it, so the limits are checked here. Errors
    name the server's address `url`.
    """

    def __init__(self, inner: httpx.BaseTransport, url: str) -> None:
        self.inner, self.url = inner, url

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its response after the checks."""
        request.headers["Accept-Encoding"] = "identity"  # so that the counted size is the real one
        answer = self.inner.handle_request(request)
        try:
            body = self._body(answer)
        finally:
            answer.close()
        if answer.is_success and body.lstrip()[:1] in (b"{", b"["):
            try:
                parsed(body)
            except ValueError as error:
                raise ServerError(
                    f"{self.url} returned JSON that cannot be used ({error!s:.200}). Nothing was "
                    "changed here."
                ) from None
        return httpx.Response(answer.status_code, headers=answer.headers, content=body)

    def close(self) -> None:
        """Close the connection."""
        self.inner.close()

    def _body(self, answer: httpx.Response) -> bytes:
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise ServerError(
                f"{self.url} returned a compressed response, which was not requested."
            )
        found = bytearray()
        pieces: Any = answer.stream
        for piece in pieces:
            found += piece
            if len(found) > LARGEST:
                raise ServerError(
                    f"{self.url} returned more than {LARGEST:,} bytes at once. Export the project "
                    "as JSON there, and type: starlearn import FOLDER export.json"
                )
        return bytes(found)


def plain_transport(url: str) -> httpx.BaseTransport:
    """Return the standard transport, with the proxy of the environment if there is one."""
    parts = urlsplit(url)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    return httpx.HTTPTransport(proxy=proxy)
