"""Import a benchmark as the command line does, with its folder on the path, and forget it again."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@contextmanager
def imported_benchmark(name: str) -> Iterator[ModuleType]:
    """Import one of benchmarks/, with what it imports from there, while this lasts."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))
        for other in [file.stem for file in BENCHMARKS.glob("*.py")]:
            sys.modules.pop(other, None)
