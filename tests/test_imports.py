"""The house rules: who may import whom, and which library has one door only."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "starlearn").rglob("*.py"))

# The layers from the ground up: folders, and the files of the root. A file may import from its own
# layer and from those below it. Two names in one layer do not import each other.
LAYERS = [
    ["errors", "version"],
    ["storage", "randomness", "progress", "console", "embedded"],
    ["settings"],
    ["tasks"],
    ["data"],
    ["model"],
    ["query", "train"],
    ["export"],
    ["distributed"],
    ["learner"],
    ["modal", "activeml"],
    ["evaluate"],
    ["campaign"],
    ["cli"],
    ["__main__"],
]
DOORS = {
    "transformers": ["model", "train"],
    "peft": ["model", "train"],
    "bitsandbytes": ["model", "train"],
    "modAL": ["modal"],
    "skactiveml": ["activeml"],
    "sqlite3": ["campaign.store", "query.score_store"],
    "huggingface_hub": ["export"],
    "ray": ["distributed.cluster"],
    "label_studio_sdk": ["campaign.labelstudio"],
    "httpx": ["campaign.labelstudio"],
    "starlette": ["campaign.web"],
    "uvicorn": ["campaign.web"],
    "triton": [],
}


def module_name(file: Path) -> str:
    """Return a file's module below the package: "query.scoring", "tasks"; "" for the package."""
    parts = file.relative_to(ROOT / "starlearn").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_checking_types(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def submodules(node: ast.ImportFrom) -> bool:
    """Whether all names that are imported from the package are modules of it."""
    return all((ROOT / "starlearn" / f"{alias.name}.py").exists() for alias in node.names)


def imports_of(file: Path) -> set[str]:
    """Modules that are imported when the code runs; those for type checkers alone do not count."""
    names: set[str] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and is_checking_types(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            assert node.module
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
            if node.module != "starlearn" or not submodules(node):
                names.add(node.module)
    return names


def top(module: str) -> str:
    return module.split(".")[0]


def layer_of(module: str) -> int:
    levels = {name: level for level, names in enumerate(LAYERS) for name in names}
    assert top(module) in levels, f"{module} has no layer: give it one in LAYERS"
    return levels[top(module)]


def own_imports(file: Path) -> set[str]:
    """Modules of the package that a file imports, named as by `module_name`."""
    known = {module_name(f) for f in FILES}
    names = {
        name.removeprefix("starlearn.")
        for name in imports_of(file)
        if name.startswith("starlearn.")
    }
    return {name for name in names if name in known}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_down(file: Path) -> None:
    module = module_name(file)
    if not module:  # the package's own face names everything, when it is used
        return
    for name in own_imports(file):
        if top(name) == top(module):
            continue
        assert layer_of(name) < layer_of(module), f"{module} imports {name} from above or beside it"
    for name in imports_of(file):
        door = DOORS.get(name.split(".")[0])
        if door is not None:
            assert any(module == d or module.startswith(d + ".") for d in door), (
                f"{module} imports {name}, which belongs to {door}"
            )


def test_nothing_imports_the_face_of_the_package() -> None:
    for file in FILES:
        assert "starlearn" not in imports_of(file), f"{file} imports the package itself"


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {module_name(file): own_imports(file) for file in FILES if module_name(file)}
    try:
        list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {error.args[1]}")


def test_the_root_of_the_package_stays_small() -> None:
    files = [f for f in (ROOT / "starlearn").iterdir() if f.is_file()]
    assert len(files) <= 12, sorted(f.name for f in files)


def test_file_names_and_public_class_names_stand_once() -> None:
    names = Counter(f.name for f in FILES if not f.name.startswith("__"))
    assert not {name for name, n in names.items() if n > 1}
    classes: Counter[str] = Counter()
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        classes.update(
            n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"
        )
    assert not {name for name, n in classes.items() if n > 1}


def test_kernels_never_import_starlearn() -> None:
    for file in (ROOT / "kernels" / "starlearn_kernels").rglob("*.py"):
        assert not any(n.split(".")[0] == "starlearn" for n in imports_of(file)), file


def test_kernels_folder_is_no_package() -> None:
    # transformers, peft and bitsandbytes probe for a package named `kernels`.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_every_file_says_what_it_is_for() -> None:
    for file in [*FILES, *(ROOT / "kernels").rglob("*.py")]:
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        assert docstring, f"{file} has no first line that says what it is for"


def test_files_stay_small_enough_to_read() -> None:
    sizes = {module_name(f): f.read_text(encoding="utf-8").count("\n") for f in FILES}
    assert not {m: n for m, n in sizes.items() if n > (600 if m == "learner.estimator" else 450)}


@pytest.mark.parametrize("command", ["import starlearn", "import starlearn.cli.app"])
def test_importing_is_cheap(command: str) -> None:
    heavy = ["torch", "transformers", "sklearn", "pandas", "matplotlib", "peft", "scipy", "httpx"]
    code = f"{command}; import sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_tests_of_arithmetic_import_no_torch() -> None:
    names = [
        "budget",
        "cost_model",
        "diversity",
        "duplicates",
        "selection",
        "statistics",
        "stopping",
    ]
    code = "; ".join(f"import test_{name}" for name in names)
    code += "; import sys; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"
