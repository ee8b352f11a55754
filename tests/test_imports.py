"""The house rules: who may import whom, and which library has one door only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "starlearn").rglob("*.py"))

# A module may import from its own layer and from those below it, never from above. A module that is
# named itself is in that layer, not in its package's.
LAYERS = [
    ["starlearn.errors", "starlearn.undo", "starlearn.callbacks"],
    ["starlearn.planning", "starlearn.fitting", "starlearn.calibration"],
    ["starlearn.settings", "starlearn.randomness", "starlearn.embedded"],
    ["starlearn.tasks"],
    ["starlearn.data"],
    ["starlearn.inputs"],
    ["starlearn.model"],
    ["starlearn.query", "starlearn.train"],
    ["starlearn.engine"],
    ["starlearn.saving"],
    ["starlearn.export", "starlearn.reporting"],
    ["starlearn.distributed", "starlearn.typed"],
    ["starlearn.protocol"],
    ["starlearn.learner"],
    ["starlearn.modal", "starlearn.activeml"],
    ["starlearn.campaign"],
    ["starlearn.evaluate"],
    ["starlearn.machine"],
    ["starlearn.terminal"],
    ["starlearn.machine_command"],
    ["starlearn.campaign.labelling", "starlearn.campaign.web"],
    [
        "starlearn.campaign.commands",
        "starlearn.campaign.care",
        "starlearn.campaign.exchange_commands",
        "starlearn.campaign.report",
        "starlearn.evaluate.commands",
    ],
    ["starlearn.planning_command"],
    ["starlearn.cli"],
    ["starlearn.__main__"],
]
DOORS = {
    # The embedded model is made apart from the rest, by a script of its own.
    "transformers": [
        "starlearn.model",
        "starlearn.train",
        "starlearn.embedded.pretrain",
        "starlearn.embedded.architecture",
    ],
    "peft": ["starlearn.model", "starlearn.train"],
    "bitsandbytes": ["starlearn.model", "starlearn.train"],
    "modAL": ["starlearn.modal"],
    "skactiveml": ["starlearn.activeml"],
    "sqlite3": ["starlearn.campaign.store", "starlearn.query.score_store"],
    "huggingface_hub": ["starlearn.export"],
    "ray": ["starlearn.distributed.cluster"],
    "label_studio_sdk": ["starlearn.campaign.labelstudio.server"],
    "httpx": ["starlearn.campaign.labelstudio.server", "starlearn.campaign.labelstudio.transport"],
    "starlette": ["starlearn.campaign.web"],
    "uvicorn": ["starlearn.campaign.web.server"],
    "triton": [],
}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_checking_types(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


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
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "starlearn":
                names.update(f"starlearn.{alias.name}" for alias in node.names)
    return names


def layer_of(module: str) -> int:
    levels = {prefix: level for level, prefixes in enumerate(LAYERS) for prefix in prefixes}
    found = [p for p in levels if module == p or module.startswith(p + ".")]
    assert found, f"{module} has no layer: give it one in LAYERS"
    return levels[max(found, key=len)]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    module = module_name(file)
    if module == "starlearn":
        return
    for name in imports_of(file):
        if name.startswith("starlearn.") and not name.startswith("starlearn.__"):
            assert layer_of(name) <= layer_of(module), f"{module} imports {name} from above"
            assert not (module.startswith("starlearn.query") and name.startswith("starlearn.train"))
            assert not (module.startswith("starlearn.train") and name.startswith("starlearn.query"))
        door = DOORS.get(name.split(".")[0])
        if door is not None:
            assert any(module == d or module.startswith(d + ".") for d in door), (
                f"{module} imports {name}, which belongs to {door}"
            )


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
    sizes = {f.relative_to(ROOT): f.read_text(encoding="utf-8").count("\n") for f in FILES}
    print("worth a look:", {str(f): n for f, n in sizes.items() if n > 350})
    assert not [str(file) for file, n in sizes.items() if n > 550]


@pytest.mark.parametrize("command", ["import starlearn", "import starlearn.cli"])
def test_importing_is_cheap(command: str) -> None:
    heavy = ["torch", "transformers", "sklearn", "pandas", "matplotlib", "peft", "scipy", "httpx"]
    code = f"{command}; import sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
