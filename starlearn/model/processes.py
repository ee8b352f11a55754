"""The processes that `accelerate launch` has started a program as: how many, and how they meet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object

from starlearn.errors import ModelMismatchError, WorkerError
from starlearn.model.memory import ran_out
from starlearn.progress import are_several, number_from_env

Result = TypeVar("Result")

PATIENCE = timedelta(days=1)
"""How long a process waits for the others. Shares of a pool may end hours apart; a process that
fails says so, and one that dies is noticed by the launcher."""
WELL, FAILED, RAN_OUT = range(3)


@dataclass(frozen=True)
class Processes:
    """All processes of this program; they run the same lines."""

    count: int = 1
    """P."""
    index: int = 0
    """Which one this is, from 0."""
    state: Any = field(default=None, repr=False, compare=False)
    """accelerate's PartialState, where there are several."""

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.index == 0

    def exchanged(self, own: list[Any]) -> list[Any]:
        """Return what all processes bring, in their order."""
        return own if self.count == 1 else list(gather_object(own))

    def together(self, compute: Callable[[], Result]) -> list[Result]:
        """Return what all processes compute, in their order; where one fails, all do."""
        with Meeting(self):
            own = compute()
        return self.exchanged([own])

    def on_main(self, act: Callable[[], Result]) -> Result:
        """Do something once, by the main process; the others wait, and get what it returned.

        All processes call it: one that is alone waits for the others.
        """
        with Meeting(self):
            own = [act()] if self.main else []
        return self.exchanged(own)[0]

    def agree(self, facts: Callable[[], Sequence[Any]], remedy: str) -> None:
        """Raise ModelMismatchError unless all processes know the same facts."""
        if self.count == 1:
            return
        given = self.together(lambda: list(facts()))
        if any(other != given[0] for other in given):
            raise ModelMismatchError(
                f"The {self.count} processes would compute different numbers: they differ in "
                f"adapter, seed, data, settings or versions. {remedy}"
            )


class Meeting:
    """A stretch of work that all processes finish, or none: they wait for each other at its end.

    In between they may meet as often as they like, all of them equally often. A process that fails
    comes to the next meeting all the same and says so, and the others fail with it; otherwise they
    would wait for it.

    Parameters
    ----------
    processes : Processes

    Raises
    ------
    WorkerError
        In the processes that have not failed themselves, when another one has.
    MemoryError
        Instead, when that one's memory ran out.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._over = False

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.total(0.0)
        elif isinstance(error, Exception) and not self._over:
            self._meet(0.0, error)

    def total(self, value: float) -> float:
        """Meet: return the sum of the values that all processes bring."""
        return self._meet(value, None)

    def add_up(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace gradients by their sums over all processes, the same bits in each of them.

        One that no process has, as of an expert that no token was sent to, stays None.
        """
        if self.processes.count == 1:
            return
        self._over = True
        there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        there = there.to(self.processes.state.device)
        torch.distributed.all_reduce(there)
        for parameter, known in zip(parameters, there.tolist(), strict=True):
            if known:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
        self._over = False

    def _meet(self, value: float, error: Exception | None) -> float:
        if self.processes.count == 1:
            return value
        self._over = True  # whatever fails from here on, there is no meeting where to say it
        how = WELL if error is None else RAN_OUT if ran_out(error) else FAILED
        own = torch.tensor([[value, how]], dtype=torch.float64, device=self.processes.state.device)
        values, states = gather(own).cpu().unbind(1)
        failed = states.nonzero().flatten().tolist()
        if failed:
            told = gather_object([f"{type(error).__name__}: {error}"])
            beyond_cure = (states == FAILED).nonzero().flatten().tolist()
            # Whose memory ran out would begin anew, and wait for one that has given up.
            if error is None or (how == RAN_OUT and beyond_cure):
                first = (beyond_cure or failed)[0]
                message = (
                    f"Process {first} of {self.processes.count} failed, and the others stop with "
                    f"it: {told[first]:.2000}"
                )
                raise (WorkerError if beyond_cure else MemoryError)(message)
        self._over = error is not None
        return float(values.sum())


def processes() -> Processes:
    """Return the processes that this one was started with; one alone otherwise."""
    if not are_several():
        return Processes()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    return Processes(state.num_processes, state.process_index, state)


def take_own_gpu() -> None:
    """Make the GPU that is this process's own the current one, before anything lies on another."""
    local = number_from_env(["LOCAL_RANK"], 0)
    if torch.cuda.is_available() and 0 < local < torch.cuda.device_count():
        torch.cuda.set_device(local)
