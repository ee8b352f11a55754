"""Every example runs, with fewer training steps."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_choose_labels() -> None:
    chosen = runpy.run_path(str(EXAMPLES / "choose_labels.py"))["main"](max_steps=3)
    totals = {name: counts.total() for name, counts in chosen.items()}
    assert totals == {"random": 40, "uncertainty": 40}


def test_length_bias() -> None:
    main = runpy.run_path(str(EXAMPLES / "length_bias.py"))["main"]
    assert set(main(max_steps=3, n_items=90)) == {"sum", "mean", "residual"}


def test_every_example_is_tested() -> None:
    own = Path(__file__).read_text(encoding="utf-8")
    assert all(file.name in own for file in EXAMPLES.glob("*.py"))
