"""Processes that `accelerate launch` started for one program, and their synchronisation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, get_int_from_env

from starlearn.errors import ModelMismatchError, WorkerError
from starlearn.model.memory import ran_out
from starlearn.progress import are_several

Result = TypeVar("Result")

TIMEOUT = timedelta(days=1)
"""Longest wait for the other processes, whose shares of a pool may end hours apart. A process that
fails tells the others, and the launcher notices one that dies."""
DONE, FAILED, RAN_OUT = range(3)
"""Status that a process reports at the end of a `SynchronizedBlock`."""


@dataclass(frozen=True)
class ProcessGroup:
    """All P processes of this program, which run the same code."""

    count: int = 1
    """P."""
    index: int = 0
    """Number of this process, from 0."""
    state: Any = field(default=None, repr=False, compare=False)
    """accelerate's PartialState, if P > 1."""

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.index == 0

    def gathered(self, own: list[Any]) -> list[Any]:
        """Return the items of all processes, in the order of the processes."""
        return own if self.count == 1 else list(gather_object(own))

    def together(self, compute: Callable[[], Result]) -> list[Result]:
        """Return the results of all processes; if one fails, all raise an error."""
        with SynchronizedBlock(self):
            own = compute()
        return self.gathered([own])

    def on_main(self, act: Callable[[], Result]) -> Result:
        """Run a function in the main process, and return its result in all of them.

        Every process must call this method, because each waits for all others.
        """
        with SynchronizedBlock(self):
            own = [act()] if self.main else []
        return self.gathered(own)[0]

    def agree(self, facts: Callable[[], Sequence[Any]], remedy: str) -> None:
        """Raise ModelMismatchError unless the facts are equal in all processes."""
        if self.count == 1:
            return
        found = self.together(lambda: list(facts()))
        if any(other != found[0] for other in found):
            raise ModelMismatchError(
                f"The {self.count} processes would compute different numbers, because they differ "
                f"in adapter, seed, data, settings or versions. {remedy}"
            )


class SynchronizedBlock:
    """A block of code that either all processes finish or none; they wait at its end.

    Inside the block the processes may exchange numbers, each of them equally often. A process that
    fails takes part in the next exchange and reports its error there, so that the others fail too
    instead of waiting forever: with MemoryError if it ran out of memory, else with WorkerError.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        # Whether a failure can no longer be reported, because an exchange has failed itself or
        # the failure is reported already.
        self._closed = False

    def __enter__(self) -> "SynchronizedBlock":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.sum(0.0)
        elif isinstance(error, Exception) and not self._closed:
            self._exchange(0.0, error)

    def sum(self, value: float) -> float:
        """Wait for all processes, and return the sum of their values."""
        return self._exchange(value, None)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace gradients by their sums over all processes, the same bits in each of them.

        A gradient that no process has, as of an expert without tokens, stays None.
        """
        if self.group.count == 1:
            return
        self._closed = True
        # All processes must reduce the same parameters, so they first find those with gradients.
        present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        present = present.to(self.group.state.device)
        torch.distributed.all_reduce(present)
        for parameter, count in zip(parameters, present.tolist(), strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
        self._closed = False

    def _exchange(self, value: float, error: Exception | None) -> float:
        """Gather value and status of all processes; raise an error if one of them failed."""
        if self.group.count == 1:
            return value
        self._closed = True
        status = DONE if error is None else RAN_OUT if ran_out(error) else FAILED
        own = torch.tensor([[value, status]], dtype=torch.float64, device=self.group.state.device)
        values, statuses = gather(own).cpu().unbind(1)
        stopped = statuses.nonzero().flatten().tolist()
        if stopped:
            messages = gather_object([f"{type(error).__name__}: {error}"])
            failed = (statuses == FAILED).nonzero().flatten().tolist()
            # A process that ran out of memory would retry with smaller batches, and wait for one
            # that has failed. If any process has failed, it stops too.
            if error is None or (status == RAN_OUT and failed):
                first = (failed or stopped)[0]
                message = (
                    f"Process {first} of {self.group.count} failed, so the others stop too: "
                    f"{messages[first]:.2000}"
                )
                raise (WorkerError if failed else MemoryError)(message)
        self._closed = error is not None
        return float(values.sum())


def processes() -> ProcessGroup:
    """Return the group of processes that were started together; otherwise a group of one."""
    if not are_several():
        return ProcessGroup()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    return ProcessGroup(state.num_processes, state.process_index, state)


def take_own_gpu() -> None:
    """Select the GPU of this process, before any tensor is created on another one."""
    local = get_int_from_env(["LOCAL_RANK"], 0)
    if torch.cuda.is_available() and 0 < local < torch.cuda.device_count():
        torch.cuda.set_device(local)
