"""What is handed out: the wheel and the archive hold what they must, and type checkers read it."""

import re
import subprocess
import sys
import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def built(source: Path, kind: str, out: Path) -> Path:
    """Build an archive or a wheel with what is installed here, for there may be no network."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, "sdist", tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, outside the checkout; its libraries are those of this one."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False)
    site = environment / SITE
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)  # noqa: S202 - our own wheel
    import numpy

    (site / "libraries.pth").write_text(str(Path(numpy.__file__).parent.parent), encoding="utf-8")
    return environment


def contents(wheel: Path) -> dict[str, bytes]:
    """Read every file of a wheel but those that tell of the build."""
    with zipfile.ZipFile(wheel) as file:
        return {n: file.read(n) for n in file.namelist() if ".dist-info/" not in n}


def packaged_sources() -> dict[str, Path]:
    """List what a user needs, by its name in the wheel."""
    roots = (ROOT / "starlearn", ROOT), (ROOT / "kernels" / "starlearn_kernels", ROOT / "kernels")
    return {
        str(file.relative_to(base)): file
        for folder, base in roots
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    held = contents(wheel)
    assert set(held) == set(packaged_sources())
    for name, file in packaged_sources().items():
        assert held[name] == file.read_bytes(), name


@pytest.mark.parametrize(
    "name",
    [
        "starlearn/py.typed",
        "starlearn/embedded/model/model.safetensors",
        "starlearn/embedded/model/tokenizer.json",
        "starlearn/campaign/report/page.html",
        "starlearn/campaign/web/templates/item.html",
        "starlearn/campaign/web/static/label.js",
        "starlearn_kernels/routes.csv",
    ],
)
def test_the_wheel_holds_what_is_no_python(wheel: Path, name: str) -> None:
    assert len(contents(wheel)[name]) > 0 or name.endswith("py.typed")


def test_tests_and_benchmarks_stay_out_of_the_wheel(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in contents(wheel)}
    assert tops == {"starlearn", "starlearn_kernels"}
    assert not [name for name in contents(wheel) if "test" in name.split("/")[-1]]


def test_the_archive_builds_the_same_wheel(archive: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    again = built(source, "wheel", tmp_path / "out")
    assert contents(again) == contents(wheel)


def test_the_tests_can_run_from_the_archive(archive: Path) -> None:
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    needed = ["README.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "docs/campaign.md"]
    assert set(needed) <= names
    assert {f"tests/{f.name}" for f in (ROOT / "tests").glob("*.py")} <= names
    assert not [name for name in names if "_build" in name or "__pycache__" in name]


def test_what_the_index_shows_is_sound(wheel: Path, archive: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(archive)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(wheel) as file:
        (name,) = [n for n in file.namelist() if n.endswith("METADATA")]
        told = file.read(name).decode()
    assert "Requires-Python: >=3.11" in told
    assert "License-Expression: Apache-2.0" in told
    assert " @ " not in "".join(re.findall(r"^Requires-Dist: .*$", told, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("asked", "told"), [("--version", "starlearn 0."), ("--help", "Usage: starlearn")]
)
def test_it_runs_as_a_module_from_an_empty_folder(
    installed: Path, tmp_path: Path, asked: str, told: str
) -> None:
    command = [str(installed / "bin" / "python"), "-P", "-m", "starlearn", asked]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"COLUMNS": "100"}
    )
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
    assert "__main__" not in done.stdout


# A user's script under mypy --strict

SCRIPT = """
import numpy as np
from numpy.typing import NDArray

from starlearn import (
    Acquisition,
    Budget,
    Campaign,
    ChoiceTask,
    GenerationTask,
    LoRA,
    Pool,
    STARLearner,
    Training,
)

learner = STARLearner(
    task=ChoiceTask("{text}", choices=["red", "blue"]),
    adapter=LoRA(r=8),
    acquisition=Acquisition(n_passes=3),
    training=Training(max_steps=3),
)
items = ["one", "two"]
fitted: STARLearner = learner.fit(items, ["red", "blue"]).teach(items, ["red", "blue"])
index, batch = learner.query(items, n_instances=1, budget=Budget(3.0))
reveal_type(learner.query(Pool("pool.jsonl"), 1))  # tuple[Any, ...]
chances: NDArray[np.float64] = learner.predict_proba(items)
reveal_type(learner.predict_proba(items))  # float64
reveal_type(learner.predict(items))  # numpy.ndarray
reveal_type(learner.score(items, ["red", "blue"]))  # float
reveal_type(learner.uncertainty(items).mixed)  # float64
reveal_type(learner.transform(items))  # float64
reveal_type(learner.estimate(items).seconds)  # float
reveal_type(learner.set_params(adapter__r=4))  # STARLearner
reveal_type(STARLearner.load("folder"))  # STARLearner
reveal_type(GenerationTask().parse("text"))  # str
with Campaign.open("folder") as campaign:
    reveal_type(campaign.query(3)[0].fields)  # dict[str, str]
    reveal_type(campaign.learner())  # STARLearner
"""
WRONG = """
from starlearn import LoRA, STARLearner

STARLearner(adaptor=LoRA())  # Unexpected keyword argument "adaptor"
LoRA(r="8")  # incompatible type "str"
STARLearner().query(["a"], 1, return_metric=True)  # Unexpected keyword argument "return_metric"
STARLearner().query(["a"], "1")  # incompatible type "str"
"""
SETTINGS = """
[mypy]
strict = true
# No type of the public face comes from these, and reading torch alone takes half a minute.
[mypy-torch.*,transformers.*,pandas.*,scipy.*]
follow_imports = skip
"""


def checked(script: str, folder: Path, installed: Path) -> tuple[dict[int, str], str]:
    """Return what mypy --strict says of each line of a user's script, and its closing line."""
    (folder / "script.py").write_text(textwrap.dedent(script), encoding="utf-8")
    (folder / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    python = installed / "bin" / "python"
    options = ["--config-file", "mypy.ini", "--python-executable", str(python)]
    cache = ["--cache-dir", str(installed / "mypy")]
    command = [sys.executable, "-P", "-m", "mypy", *options, *cache, "script.py"]
    # Nothing of the checkout: the types are read from the installed wheel.
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={"PATH": ""})
    lines: dict[int, str] = {}
    for number, text in re.findall(r"^script\.py:(\d+): (.*)$", done.stdout, re.MULTILINE):
        lines[int(number)] = lines.get(int(number), "") + text + "\n"
    return lines, done.stdout.splitlines()[-1] if done.stdout else done.stderr


def test_a_users_script_is_typed(installed: Path, tmp_path: Path) -> None:
    said, closing = checked(SCRIPT, tmp_path, installed)
    assert closing.startswith("Success"), (closing, said)
    for number, line in enumerate(SCRIPT.splitlines(), start=1):
        if "reveal_type" in line:
            wanted = line.partition("  # ")[2]
            assert wanted in said[number], (line, said[number])
            assert '"Any"' not in said[number], line


def test_a_users_mistakes_are_told(installed: Path, tmp_path: Path) -> None:
    said, closing = checked(WRONG, tmp_path, installed)
    assert closing.startswith("Found"), closing
    marked = {
        number: line.partition("  # ")[2]
        for number, line in enumerate(WRONG.splitlines(), start=1)
        if "  # " in line
    }
    assert set(said) == set(marked), said
    for number, wanted in marked.items():
        assert wanted in said[number]
