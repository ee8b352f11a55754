"""Every fault of the catalogue has a test, or a written reason why it has none."""

import ast
import re
from pathlib import Path

import pytest
from faults_covered import COVERED, LAST, Test

TESTS = Path(__file__).parent.parent


def names_of(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def numbers_of(name):
    """Return the faults that a test's name claims: test_fault_05_06_... covers 5 and 6."""
    found = re.match(r"test_fault_((?:\d\d_)+)", name) or re.match(r"test_fault_(\d\d)_and_", name)
    numbers = re.findall(r"\d\d", found[1]) if found else []
    also = re.match(r"test_fault_\d\d_and_(\d\d)_", name)
    return {int(number) for number in numbers + ([also[1]] if also else [])}


def named():
    """Return the faults that tests name themselves."""
    files = (TESTS / "campaign").glob("test_*.py")
    return {number for file in files for name in names_of(file) for number in numbers_of(name)}


def test_names_are_read():
    assert numbers_of("test_fault_05_06_a_power_cut") == {5, 6}
    assert numbers_of("test_fault_44_and_45_small") == {44, 45}
    assert numbers_of("test_two_rounds") == set()


@pytest.mark.parametrize("number", range(1, LAST + 1))
def test_every_fault_is_covered(number):
    entries = COVERED.get(number, [])
    assert entries or number in named(), f"fault {number} has no test and no reason"
    for entry in entries:
        if isinstance(entry, Test):
            assert entry.name in names_of(TESTS / entry.file), entry
        else:
            assert len(entry.text) > 10


def test_no_other_number_is_listed():
    assert set(COVERED) <= set(range(1, LAST + 1))
