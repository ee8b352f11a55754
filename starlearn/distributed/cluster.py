"""A Ray cluster: one that is running, or one on this machine that ends with the call."""

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlearn.distributed.worker import ScoringJob, ScoringWorker, numerics_of
from starlearn.errors import InputError, MissingDependencyError, WorkerError


@dataclass(frozen=True)
class RayEngine:
    """Settings of scoring on Ray; ``engine="ray"`` means ``engine=RayEngine()``.

    Parameters
    ----------
    workers : int, default=2
        Processes, each of which loads the model.
    cpus, gpus : float, default=1 and 0
        CPUs and GPUs per worker. With ``gpus=0`` workers see no GPU. The calling process needs no
        GPU.
    address : str, optional
        Address of a running cluster, or "auto". By default a cluster is started on this machine
        and ended after the call. It listens on the loopback interface only, without dashboard and
        usage statistics.
    folder : path, optional
        Folder for chunks, which several machines must share. By default the learner's `cache_dir`;
        without one a temporary folder, so that an interrupted query cannot be resumed.
    object_store_mb : int, default=200
        Memory for the objects that Ray exchanges. These are small: keys of chunks.

    Raises
    ------
    InputError
        When a number is too small or has a wrong type.
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
    """Return the settings of an `engine` argument."""
    if engine == "ray":
        engine = RayEngine()
    if not isinstance(engine, RayEngine):
        raise InputError(
            f"engine={engine!r:.60} is unknown. Use 'ray', RayEngine(workers=4), 'accelerate', "
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
            "engine='ray' needs Ray, which is not installed. Type: pip install 'starlearn[ray]'"
        ) from error
    return ray


@contextmanager
def running(settings: RayEngine) -> Iterator[Any]:
    """Connect to a cluster and give the `ray` module; end a cluster that was started here."""
    ray = _ray()
    if ray.is_initialized():
        _warn_if_too_small(ray, settings)
        yield ray
        return
    quiet = {"logging_level": "error", "log_to_driver": False}
    if settings.address is not None:
        try:
            ray.init(address=settings.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise WorkerError(
                f"No Ray cluster answers at {settings.address!r}: {error}. Start one with "
                "ray start --head, or leave the address out."
            ) from error
        try:
            _warn_if_too_small(ray, settings)
            yield ray
        finally:
            ray.shutdown()
        return
    # Ray puts sockets there, whose paths may have at most 107 characters: hence a short name.
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
        if shortage := _shortage(ray, settings):
            raise WorkerError(f"{shortage} Ask for less, or give the address of another cluster.")
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _shortage(ray: Any, settings: RayEngine) -> str:
    """Return why a cluster is too small for one worker, which would wait for ever; "" if not."""
    available = ray.cluster_resources()
    needed = {"CPU": settings.cpus, "GPU": settings.gpus}
    if all(available.get(name, 0) >= number for name, number in needed.items()):
        return ""
    found = " and ".join(f"{available.get(name, 0):g} {name}s" for name in needed)
    return (
        f"Each worker takes RayEngine(cpus={settings.cpus:g}, gpus={settings.gpus:g}), and the "
        f"cluster has {found} in all."
    )


def _warn_if_too_small(ray: Any, settings: RayEngine) -> None:
    if shortage := _shortage(ray, settings):
        warnings.warn(f"{shortage} The query waits until it has more.", UserWarning, stacklevel=4)


def worker_numerics(settings: RayEngine, source: str, quantization: Any) -> str:
    """Return a worker's hardware and library versions, as `numerics_of` does there."""
    with running(settings) as ray:
        remote = ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus)(numerics_of)
        return str(ray.get(remote.remote(source, quantization)))


def finished(
    ray: Any, settings: RayEngine, job: ScoringJob, keys: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Score chunks by workers, and yield one result per finished chunk, in any order.

    Ray Data restarts a worker that dies, and gives its chunk to another one. The keys of a result
    are those of `RESULT`.
    """
    import pyarrow as pa

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    names = ray.data.from_arrow(pa.table({"key": list(keys)}), override_num_blocks=len(keys))
    scored = names.map_batches(
        ScoringWorker,
        batch_size=1,  # Ray requires a number for workers with GPUs
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(int(settings.workers), len(keys))),
        num_cpus=settings.cpus,
        num_gpus=settings.gpus or None,
        fn_constructor_args=(job,),
    )
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # no messages about progress
    try:
        for batch in scored.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            yield from batch.to_pylist()
    finally:
        logger.setLevel(level)
