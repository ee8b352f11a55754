"""One call of a learner at a time, whichever thread makes it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

Method = TypeVar("Method", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)

METHODS = (
    *("fit", "teach", "record"),
    *("query", "uncertainty", "estimate", "transform", "predict", "score"),
)
"""Methods that read or change what was learned; `only_with_choices` covers those it decorates."""

_locks: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
"""Lock of each learner. It is no attribute, because copies and pickles have locks of their own."""
_guard = threading.Lock()
_thread = threading.local()


@contextmanager
def alone(learner: Any) -> Iterator[None]:
    """Wait until no other thread uses a learner, and keep the others waiting.

    A call within another call of the same thread, as in a callback, does not wait: it could wait
    for itself.
    """
    if getattr(_thread, "inside", False):
        yield
        return
    with _guard:
        lock = _locks.setdefault(learner, threading.Lock())
    with lock:
        _thread.inside = True
        try:
            yield
        finally:
            _thread.inside = False


def one_at_a_time(method: Method) -> Method:
    """Return a method that waits while another thread uses its object."""

    @wraps(method)
    def waiting(self: Any, *args: Any, **named: Any) -> Any:
        with alone(self):
            return method(self, *args, **named)

    return cast("Method", waiting)


def calls_one_at_a_time(kind: Class) -> Class:
    """Apply `one_at_a_time` to the methods of a class that train, score or record."""
    for name in METHODS:
        setattr(kind, name, one_at_a_time(getattr(kind, name)))
    return kind
