"""The page's server keeps serving while clients open connections and send nothing."""

import http.client
import socket
import threading
from contextlib import ExitStack, contextmanager

import pytest

from starlearn.campaign.web import connections
from starlearn.campaign.web.access import AccessTokens
from starlearn.campaign.web.routes import make_app
from starlearn.campaign.web.service import AnnotationService
from starlearn.campaign.web.serving import listening, make_server

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


@contextmanager
def serving(campaign):
    """Serve the page in a thread, and yield its port and its tokens."""
    with listening(0) as listener:
        port = listener.getsockname()[1]
        tokens = AccessTokens(port)
        server = make_server(make_app(AnnotationService(campaign), tokens))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield port, tokens
        finally:
            server.should_exit = True
            thread.join()


def status_of(port, tokens, connection=None):
    """Return the status of the page's response."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    client.sock = connection
    client.request("GET", "/name", headers={"Cookie": f"{tokens.cookie}={tokens.token}"})
    response = client.getresponse()
    response.read()
    if connection is None:
        client.close()
    return response.status


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def is_closed(connection):
    """Whether the server closes the connection before the client's time limit of a minute."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: "])
def test_idle_connections_lock_nobody_out(batch, monkeypatch, sent):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 8)
    with serving(batch) as (port, tokens), ExitStack() as opened:
        idle = [opened.enter_context(connected(port)) for _ in range(40)]
        for connection in idle:
            connection.sendall(sent)
        assert status_of(port, tokens) == 200
        # The oldest had to make room, and the newest did not.
        assert all(map(is_closed, idle[:30]))
        idle[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            idle[-1].recv(1)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: ",
        b"POST /respond HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nkind",
    ],
)
def test_a_connection_without_a_whole_request_is_closed_in_time(batch, monkeypatch, sent):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.2)
    with serving(batch) as (port, _), connected(port) as late:
        late.sendall(sent)
        response = b""
        while part := late.recv(1000):
            response += part
        # Nothing, or the refusal of a request whose body is not read.
        assert not response or response.startswith(b"HTTP/1.1 403")


def test_a_connection_that_is_used_again_has_its_time_again(batch, monkeypatch):
    with serving(batch) as (port, tokens), connected(port) as connection:
        for _ in range(3):
            assert status_of(port, tokens, connection) == 200
            monkeypatch.setattr(connections, "REQUEST_SECONDS", 5.0)


def test_more_requests_at_once_than_connections_are_answered_or_closed(batch, monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    statuses = []

    def visit(port, tokens):
        try:
            statuses.append(status_of(port, tokens))
        except (ConnectionError, http.client.RemoteDisconnected):
            statuses.append(None)

    with serving(batch) as (port, tokens):
        threads = [threading.Thread(target=visit, args=(port, tokens)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) <= {200, None}
        assert status_of(port, tokens) == 200
