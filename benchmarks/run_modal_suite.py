"""Run modAL's own test suite against modAL's classes or starlearn's, and compare the two.

The suite is not part of this repository. Fetch it, then run it twice and compare::

    git clone https://github.com/modAL-python/modAL
    python benchmarks/run_modal_suite.py run modAL --classes modal --out before.json
    python benchmarks/run_modal_suite.py run modAL --classes starlearn --out after.json
    python benchmarks/run_modal_suite.py compare before.json after.json

Run the first one in an environment with scikit-learn before 1.8 and what modAL's tests need; see
docs/ecosystem/modal_suite.md. `compare` fails when a test that passed before does not pass after.
The suite imports modAL.dropout, which needs `pkg_resources`: pip install 'setuptools<81'
"""

import argparse
import importlib
import json
import os
import random
import sys
import time
import traceback
import unittest
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

NO_PKG_RESOURCES = (
    "modAL's suite imports modAL.dropout, whose skorch==0.9.0 needs pkg_resources, which "
    "setuptools 81 removed. Type: pip install 'setuptools<81'"
)
LIBRARIES = ("modAL-python", "scikit-learn", "numpy", "pandas", "scipy", "torch")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the suite")
    run.add_argument("folder", type=Path, help="modAL's repository; its tests/ is used")
    run.add_argument("--classes", choices=["modal", "starlearn"], default="starlearn")
    run.add_argument(
        "--repairs",
        choices=["import", "all"],
        default="all",
        help="what is repaired in modAL: only its import, or also what its two classes do not use "
        "(BayesianOptimizer, expected error reduction)",
    )
    run.add_argument("--seed", type=int, default=0, help="seed of each test")
    run.add_argument("--out", type=Path, help="JSON file for the results")
    compare = commands.add_parser("compare", help="compare two results")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "compare":
        return compared(read(given.before), read(given.after))
    found = results(given.folder, given.classes, given.repairs, given.seed)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def results(folder: Path, classes: str, repairs: str, seed: int) -> dict[str, Any]:
    """Run the suite in `folder` and return the outcome of each test, with the versions used."""
    tests = folder.resolve() / "tests"
    if not (tests / "core_tests.py").is_file():
        raise SystemExit(
            f"{folder} has no tests/core_tests.py. Give the folder of modAL's repository."
        )
    import_expected_error()
    if repairs == "all":
        repair_modal()
    if classes == "starlearn":
        use_classes_of_starlearn()
    sys.path.insert(0, str(tests))
    os.chdir(tests)  # the suite imports its examples from there
    try:
        importlib.import_module("core_tests")
    except ModuleNotFoundError as error:
        if error.name != "pkg_resources":
            raise
        raise SystemExit(NO_PKG_RESOURCES) from error
    suite = unittest.defaultTestLoader.loadTestsFromName("core_tests")
    outcome = Outcome(seed)
    suite.run(outcome)
    versions = {name: installed(name) for name in LIBRARIES}
    found = {
        "classes": classes,
        "repairs": repairs,
        "seed": seed,
        "versions": versions,
        "tests": outcome.found,
        "reasons": outcome.reasons,
    }
    print(headline(found))
    return found


def headline(found: dict[str, Any]) -> str:
    passed = list(found["tests"].values()).count("passed")
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in LIBRARIES)
    return (
        f"{found['classes']}, repairs {found['repairs']}: {passed} of {len(found['tests'])} "
        f"passed ({versions})"
    )


def import_expected_error() -> None:
    """Import modAL.expected_error, which the suite needs and which reads np.float."""
    import numpy as np

    missing = "float" not in vars(np)
    if missing:
        vars(np)["float"] = float
    try:
        importlib.import_module("modAL.expected_error")
    finally:
        if missing:
            del vars(np)["float"]


def repair_modal() -> None:
    """Restore an argument that scikit-learn 1.8 renamed and a method that pandas 2 removed.

    starlearn's classes use neither.
    """
    import inspect

    import modAL.models.learners as learners
    import pandas as pd

    check = learners.check_X_y
    if "force_all_finite" not in inspect.signature(check).parameters:

        def check_as_before(*args: Any, force_all_finite: Any = True, **kwargs: Any) -> Any:
            return check(*args, ensure_all_finite=force_all_finite, **kwargs)

        learners.check_X_y = check_as_before
    if not hasattr(pd.DataFrame, "append"):

        def append(frame: Any, others: Any) -> Any:
            rows = [one.to_frame().T if isinstance(one, pd.Series) else one for one in others]
            return pd.concat([frame, *rows])

        pd.DataFrame.append = append


def use_classes_of_starlearn() -> None:
    """Replace modAL's classes by starlearn's under the names that the suite imports."""
    import modAL.models
    import modAL.models.learners

    from starlearn import modal

    for place in (modAL.models, modAL.models.learners):
        for name in ("ActiveLearner", "Committee"):
            setattr(place, name, getattr(modal, name))


class Outcome(unittest.TestResult):
    """Outcome of each test. Every test starts with the same state of the random generators."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.found: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's name
        super().startTest(test)
        import numpy as np
        import torch

        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002 - the suite draws from it
        torch.manual_seed(self.seed)
        self.began = time.perf_counter()

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        name = short(test)
        self.found.setdefault(name, "passed")
        seconds = time.perf_counter() - self.began
        print(f"{self.found[name]:7} {seconds:6.1f} s  {name}  {self.reasons.get(name, '')}")

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        self.note(test, err)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        self.note(test, err)

    def note(self, test: unittest.TestCase, err: Any) -> None:
        kind, error, where = err
        inner = traceback.extract_tb(where)[-1]
        text = " ".join(str(error).split())
        self.found[short(test)] = "failed"
        self.reasons[short(test)] = (
            f"{kind.__name__}: {text[:160]} ({Path(inner.filename).name}, {inner.name})"
        )


def short(test: unittest.TestCase) -> str:
    return ".".join(test.id().split(".")[-2:])


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def compared(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print how two results differ; 1 when a test passed before and does not after."""
    names = sorted(set(before["tests"]) | set(after["tests"]))
    pairs = {n: (before["tests"].get(n, "absent"), after["tests"].get(n, "absent")) for n in names}
    for found in (before, after):
        print(headline(found))
    for name, (was, now) in pairs.items():
        if was != now:
            reason = after["reasons"].get(name) or before["reasons"].get(name, "")
            print(f"  {name}: {was} -> {now}  {reason}")
    lost = [name for name, (was, now) in pairs.items() if was == "passed" != now]
    print(f"{len(lost)} tests passed before and do not pass after.")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
