"""A Ray cluster: one that runs already, or one of this machine for as long as it is needed."""

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlearn.distributed.worker import ScoringWorker, Work, numerics_of
from starlearn.errors import InputError, MissingDependencyError, WorkerError


@dataclass(frozen=True)
class RayEngine:
    """How a pool is scored by Ray; ``engine="ray"`` stands for ``engine=RayEngine()``.

    Parameters
    ----------
    workers : int, default=2
        Processes that load the model, each for itself.
    cpus, gpus : float, default=1 and 0
        What each takes of a machine. Without a GPU of its own a worker sees none. The process that
        asks needs none in either case.
    address : str, optional
        Of a cluster that runs, or "auto". Without it, one is started on this machine, on the
        loopback interface and without dashboard and usage statistics, and ended afterwards.
    folder : path, optional
        Where chunks wait and are kept: on storage that all machines share, where there are
        several. By default the learner's `cache_dir`; without one, a temporary folder, and an
        interrupted query begins anew.
    object_store_mb : int, default=200
        Memory for what Ray itself passes around: names of chunks, which are small.

    Raises
    ------
    InputError
        When a number cannot be used.
    """

    workers: int = 2
    cpus: float = 1
    gpus: float = 0
    address: str | None = None
    folder: str | os.PathLike[str] | None = None
    object_store_mb: int = 200

    def __post_init__(self) -> None:
        for name, least in {"workers": 1, "cpus": 0, "gpus": 0, "object_store_mb": 80}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
                raise InputError(f"RayEngine({name}=...) must be at least {least}, got {value!r}.")
        if self.workers != int(self.workers):
            raise InputError(
                f"RayEngine(workers=...) must be a whole number, got {self.workers!r}."
            )


def engine_of(engine: Any) -> RayEngine:
    """Return the settings of an engine.

    Raises
    ------
    InputError
        When it is not known.
    MissingDependencyError
        When Ray is not installed.
    """
    if engine == "ray":
        engine = RayEngine()
    if not isinstance(engine, RayEngine):
        raise InputError(
            f"engine={engine!r:.60} is not known. Use 'ray', RayEngine(workers=4), 'accelerate', "
            "or None to score in this process."
        )
    _ray()
    return engine


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(
            "Ray is not installed, and engine='ray' needs it: pip install 'starlearn[ray]'"
        ) from error
    return ray


@contextmanager
def running(settings: RayEngine) -> Iterator[Any]:
    """Give the `ray` module, connected; a cluster that was started for it ends with it."""
    ray = _ray()
    if ray.is_initialized():
        _look_for_room(ray, settings)
        yield ray
        return
    quiet = {"logging_level": "error", "log_to_driver": False}
    if settings.address is not None:
        try:
            ray.init(address=settings.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise WorkerError(
                f"No Ray cluster answers at {settings.address!r}: {error}. Start one (ray start "
                "--head), or leave the address out."
            ) from error
        try:
            _look_for_room(ray, settings)
            yield ray
        finally:
            ray.shutdown()
        return
    # Sockets lie in it, and their paths may have 107 characters at most.
    scratch = tempfile.mkdtemp(prefix="slray-", dir="/tmp" if os.path.isdir("/tmp") else None)  # noqa: S108
    try:
        ray.init(
            num_cpus=max(1, int(-(-settings.workers * settings.cpus // 1))),
            object_store_memory=settings.object_store_mb * 10**6,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=scratch,
            **quiet,
        )
        if lack := _lack(ray, settings):
            raise WorkerError(f"{lack} Ask for less, or give the address of another cluster.")
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _lack(ray: Any, settings: RayEngine) -> str:
    """Say what a cluster cannot give a worker, which then waits for ever; nothing if it can."""
    there = ray.cluster_resources()
    asked = {"CPU": settings.cpus, "GPU": settings.gpus}
    if all(there.get(name, 0) >= number for name, number in asked.items()):
        return ""
    words = " and ".join(f"{there.get(name, 0):g} {name}s" for name in asked)
    return (
        f"RayEngine(cpus={settings.cpus:g}, gpus={settings.gpus:g}) is what each worker takes, and "
        f"the cluster has {words} in all."
    )


def _look_for_room(ray: Any, settings: RayEngine) -> None:
    if lack := _lack(ray, settings):
        warnings.warn(f"{lack} The query waits until it has more.", UserWarning, stacklevel=4)


def numerics_there(settings: RayEngine, source: str, quantization: Any) -> str:
    """Ask a worker what it computes with."""
    with running(settings) as ray:
        remote = ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus)(numerics_of)
        return str(ray.get(remote.remote(source, quantization)))


def finished(
    ray: Any, settings: RayEngine, work: Work, keys: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Let workers score chunks; yield each as it is finished, in any order.

    Ray Data keeps the workers busy and starts those anew that die; what they were at is given to
    another one.

    Yields
    ------
    dict
        key, error and numbers, see :meth:`starlearn.distributed.worker.ScoringWorker.__call__`.
    """
    import pyarrow as pa

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    names = ray.data.from_arrow(pa.table({"key": list(keys)}), override_num_blocks=len(keys))
    scored = names.map_batches(
        ScoringWorker,
        batch_size=1,  # Ray wants a number where workers have GPUs
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(int(settings.workers), len(keys))),
        num_cpus=settings.cpus,
        num_gpus=settings.gpus or None,
        fn_constructor_args=(work,),
    )
    with _quiet("ray.data"):
        for batch in scored.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            yield from batch.to_pylist()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library's notices about its own progress from the terminal."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
