"""One bar for a whole query: items, time left, and tokens per second."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from starlearn.callbacks import tell
from starlearn.model.launched import is_main


class ItemBar:
    """A progress bar over the items of a pool, whatever stages an item goes through.

    Parameters
    ----------
    title : str
    total : int
        m, the items that are to be scored.
    verbose : int
        0 shows nothing; of several processes of a program the first one shows.
    callbacks : sequence
        Functions that are told too, shown or not; by the first process.
    """

    def __init__(self, title: str, total: int, verbose: int, callbacks: Sequence[Any] = ()) -> None:
        shown = verbose and is_main()
        self._bar: Any = tqdm(total=total, desc=title, unit="item", disable=not shown)
        self._title = title
        self._counts = False
        self.seconds: dict[str, float] = {}
        """Time spent in each stage."""
        self._callbacks: Sequence[Any] = callbacks if is_main() else ()
        self._total, self._done = total, 0
        self._finished = 0
        self._tokens = 0
        self._began = time.perf_counter()

    def __enter__(self) -> "ItemBar":
        tell(self._callbacks, self._title, 0, self._total)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @contextmanager
    def stage(self, name: str, *, counts: bool) -> Iterator[None]:
        """Say what is being done, and whether an item is done with it."""
        self._bar.set_description(f"{self._title}: {name}", refresh=False)
        before, self._counts = self._counts, counts
        began = time.perf_counter()
        try:
            yield
        finally:
            self._counts = before
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def advance(self, items: int, tokens: int) -> None:
        """Count the model's work: items of the current stage, and padded tokens over all passes."""
        self._tokens += tokens
        rate = self._tokens / max(time.perf_counter() - self._began, 1e-9)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._move(items if self._counts else 0)

    def finish(self, items: int) -> None:
        """Count a piece of the pool as done, those of its items too that needed no work."""
        self._finished += items
        self._move(self._finished - self._done)

    def _move(self, items: int) -> None:
        self._bar.update(items)  # of 0 too: the tokens per second have changed
        self._done += items
        if items:
            tell(self._callbacks, self._title, self._done, self._total)
