"""Connections of the page's server, limited in number and in time."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 128
"""Below the 256 open files that macOS allows a process by default."""
REQUEST_SECONDS = 30.0
"""Longest time from the start of a connection, or the last response, to the end of a request."""


class LimitedConnection(H11Protocol):
    """A connection that is closed unless a whole request arrives in time.

    uvicorn itself waits forever for the first request. If there are too many connections, the one
    that has waited longest is closed, so that idle ones never lock anybody out.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit, and make room for this connection."""
        super().connection_made(transport)
        self._start_waiting()
        self._timer = self.loop.call_later(REQUEST_SECONDS, self._close_if_late)
        others: Any = self.connections
        # An aborted connection stays in the set until the event loop's next turn.
        present = [other for other in others if not other.transport.is_closing()]
        if len(present) > MOST_CONNECTIONS:
            waiting = (other for other in present if other.is_waiting())
            # This connection itself is among them, and is closed only if no other one waits.
            min(waiting, key=lambda other: other.waiting_since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
        self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Start the time limit of the next request."""
        self._start_waiting()
        super().on_response_complete()

    def is_waiting(self) -> bool:
        """Whether the connection waits for a request or for the rest of one."""
        cycle = self.cycle
        return cycle is None or cycle.more_body or cycle.response_complete

    def _start_waiting(self) -> None:
        self.waiting_since = self.loop.time()

    def _close_if_late(self) -> None:
        left = self.waiting_since + REQUEST_SECONDS - self.loop.time()
        if not self.is_waiting():
            left = REQUEST_SECONDS
        if left <= 0:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(left, self._close_if_late)
