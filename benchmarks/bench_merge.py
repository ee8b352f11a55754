"""How much answers change when an adapter that was trained on nf4 is merged in full precision.

    python benchmarks/bench_merge.py --seeds 5

The embedded model learns in nf4 on a pool of its own, and answers the test items; so do the merged
models, in float32 and with their weights stored in bfloat16 (computed in float32 both times). The
control was trained without quantisation, where merging changes nothing but rounding.
"""

import tempfile
from pathlib import Path

import numpy as np
from measuring import COMMON, RESULTS, common, parser_of, write_row
from query_cases import study_learner

from starlearn import STARLearner
from starlearn.embedded.pools import EmbeddedPool, make_pool
from starlearn.learner.session import session_of
from starlearn.progress import ItemBar

FIELDS = [
    *COMMON, "model", "trained_on", "merged_into", "merged_as", "seed", "n_labels", "n_test",
    "megabytes", "accuracy_learner", "accuracy_merged", "same_answer", "mean_change",
    "largest_change",
]  # fmt: skip
"""Changes are of the probability of a choice, over all choices and test items."""


def base_probabilities(folder: Path, learner: STARLearner, items: list) -> np.ndarray:
    """Return the probabilities of the learner's choices by a model without an adapter, [m, C]."""
    merged = STARLearner(str(folder), task=learner.task, quantization="none", verbose=False)
    session = session_of(merged)
    tree = session.choice_tree(learner.classes_.tolist())
    prompts = session.prompts(session.parts.task.fill(items), session.room(tree))
    scorer = session.scorer(tree)
    with scorer.ready(), ItemBar("merged", len(prompts), verbose=False) as bar:
        return scorer.probabilities(tree, prompts, bar)


def measure(pool: EmbeddedPool, quantization: str, seed: int, n_labels: int, out: Path) -> None:
    """Train one learner, merge it in two types, and write a row for each."""
    learner = study_learner(pool, seed, max_steps=150).set_params(quantization=quantization)
    rows = np.random.default_rng(seed).choice(len(pool.items), n_labels, replace=False)
    learner.fit([pool.items[i] for i in rows], [pool.labels[i] for i in rows])
    own, gold = learner.predict_proba(pool.test_items), np.array(pool.test_labels)
    kinds = [("original", "float32"), ("original", "bfloat16")]
    if quantization != "none":
        kinds += [("dequantised", "float32"), ("dequantised", "bfloat16")]
    for weights, dtype in kinds:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "merged"
            found = learner.merge(folder, dtype=dtype, dequantize=weights == "dequantised")
            other = base_probabilities(found.folder, learner, pool.test_items)
        answers, others = (learner.classes_[p.argmax(axis=1)] for p in (own, other))
        change = np.abs(own - other)
        row = common("cpu") | {
            "model": "embedded",
            "trained_on": quantization,
            "merged_into": weights,
            "merged_as": dtype,
            "seed": seed,
            "n_labels": n_labels,
            "n_test": len(gold),
            "megabytes": f"{found.n_bytes / 1e6:.1f}",
            "accuracy_learner": f"{np.mean(answers == gold):.3f}",
            "accuracy_merged": f"{np.mean(others == gold):.3f}",
            "same_answer": f"{np.mean(answers == others):.3f}",
            "mean_change": f"{change.mean():.2e}",
            "largest_change": f"{change.max():.2e}",
        }
        write_row(out, FIELDS, row)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n-labels", type=int, default=100)
    parser.add_argument("--n-test", type=int, default=300)
    parser.add_argument("--out", type=Path, default=RESULTS / "merge.csv")
    args = parser.parse_args(arguments)
    for seed in range(args.seeds):
        pool = make_pool("skewed", n_items=500, n_test=args.n_test, random_state=seed)
        for quantization in ("nf4", "none"):
            measure(pool, quantization, seed, args.n_labels, args.out)


if __name__ == "__main__":
    main()
