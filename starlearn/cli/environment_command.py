"""starlearn doctor without a folder: the machine as a table, or as JSON."""

import json
from pathlib import Path
from typing import Any

from starlearn.console import make_console, plain

MARKS = {"ok": "ok", "note": "note", "warning": "WARNING", "error": "ERROR"}


def show_machine(folder: Path, model: str | None, as_text: bool) -> bool:
    """Look at the machine and print what was found; False when something cannot be used."""
    from starlearn.cli import environment

    checks = environment.examine(folder, model)
    if as_text:
        # Not through a console, which would break lines: other programs read this.
        print(json.dumps(environment.as_json(checks), indent=2))
        return not environment.failed(checks)
    console = make_console()
    console.print(_table(checks))
    for check in checks:
        if check.fix and check.state in ("error", "warning"):
            console.print(plain(f"{MARKS[check.state]}: {check.name}: {check.found}"))
            console.print(plain(f"  {check.fix}"))
    bad = environment.failed(checks)
    console.print("Something cannot be used, see above." if bad else "All that is needed is there.")
    return not bad


def _table(checks: Any) -> Any:
    from rich.table import Table

    table = Table(title="starlearn doctor")
    for name in ("", "what", "found", "to add it"):
        table.add_column(name, overflow="fold")
    group = ""
    for check in checks:
        if group and check.group != group:
            table.add_section()
        group = check.group
        table.add_row(
            MARKS[check.state],
            plain(f"starlearn[{check.name}]" if check.group == "extras" else check.name),
            plain(check.found),
            plain(check.fix) if check.state == "note" else "",
        )
    return table
