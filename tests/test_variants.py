"""benchmarks/variants.py: tuning lines become rows once, and differences are paired by seed."""

import variants
from studies import made_line

from starlearn.evaluate.run_log import append_line


def test_rows_are_kept_once_and_differences_are_paired(tmp_path):
    gains = {"random": [0.2, 0.3], "bald": [0.5, 0.4], "soft": [0.1]}
    for arm, accuracies in gains.items():
        for seed, value in enumerate(accuracies, 1000):
            line = made_line("skewed", arm, seed, [value, value], purpose="tuning", cpu_seconds=1.0)
            append_line(tmp_path / "variants.jsonl", line)
    report = made_line("skewed", "bald", 20, [0.9, 0.9], cpu_seconds=1.0)
    append_line(tmp_path / "primary.jsonl", report)
    failed = made_line("skewed", "soft", 1001, [0.9, 0.9], purpose="tuning", error="it broke")
    append_line(tmp_path / "variants.jsonl", failed)
    rows = variants.collected([tmp_path], tmp_path / "none.csv")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    again = variants.collected([tmp_path], tmp_path / "rows.csv")
    found = variants.differences(again)
    assert rows.equals(again)
    assert list(rows["arm"]) == ["bald", "random", "soft", "bald", "random"]
    assert dict(found["skewed"]) == {"bald": "+0.200 (2)", "soft": "-0.100 (1)"}
