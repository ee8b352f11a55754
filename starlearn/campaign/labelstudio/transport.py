"""The way to a Label Studio server: nothing huge, deep or encoded comes back on it."""

from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from starlearn.campaign.labelstudio.payload import parsed
from starlearn.errors import ServerError

LARGEST = 128 * 1024**2
"""Bytes of one answer."""


class Guarded(httpx.BaseTransport):
    """A transport that reads answers up to a limit, and JSON of bounded depth only.

    The client parses what it gets before anybody can look at it, so the looking is done here.

    Parameters
    ----------
    inner : httpx.BaseTransport
    url : str
        Of the server, for errors.
    """

    def __init__(self, inner: httpx.BaseTransport, url: str) -> None:
        self.inner, self.url = inner, url

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return an answer that was read and looked at."""
        request.headers["Accept-Encoding"] = "identity"  # so that its size is what is counted
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
                    f"{self.url} answers JSON that cannot be used ({error!s:.200}). Nothing was "
                    "changed here."
                ) from None
        return httpx.Response(answer.status_code, headers=answer.headers, content=body)

    def close(self) -> None:
        """Close the connection."""
        self.inner.close()

    def _body(self, answer: httpx.Response) -> bytes:
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise ServerError(f"{self.url} encodes its answers, though asked not to.")
        found = bytearray()
        pieces: Any = answer.stream
        for piece in pieces:
            found += piece
            if len(found) > LARGEST:
                raise ServerError(
                    f"{self.url} answers with more than {LARGEST:,} bytes at a time. Export the "
                    "project as JSON there, and type: starlearn import FOLDER export.json"
                )
        return bytes(found)


def plain_transport(url: str) -> httpx.BaseTransport:
    """Return the usual transport, through the proxy of the environment where there is one."""
    parts = urlsplit(url)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    return httpx.HTTPTransport(proxy=proxy)
