"""Which 40 prompts would you label next? One round, item by item.

The pool is skewed: 80 % of the items need a skill that the base model already has. Random choice
therefore spends 80 % of the labels on it. Which items does the default query select?

    python examples/choose_labels.py

One round with one seed shows how a query works. It does not show that a query saves labels. For
that, see ``starlearn study``, which pairs many seeds, and ``docs/evidence.md``.
"""

from collections import Counter

from starlearn import ChoiceTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import make_pool


def main(max_steps: int = 150) -> dict[str, Counter[str]]:
    """Train on 50 random labels, select 40 items by both strategies, and print their skills."""
    data = make_pool("skewed", n_items=600, n_test=100, random_state=1)
    learner = STARLearner(
        task=ChoiceTask(data.prompt, choices=data.choices),
        adapter=LoRA(r=16, alpha=32),
        training=Training(max_steps=max_steps, learning_rate=3e-3),
        random_state=1,
        verbose=False,
    )
    learner.fit(data.items[:50], data.labels[:50])
    pool, skills = data.items[50:], data.skills[50:]
    print(f"accuracy after 50 labels: {learner.score(data.test_items, data.test_labels):.2f}")

    chosen: dict[str, Counter[str]] = {}
    for strategy in ("random", "uncertainty"):
        index, _ = learner.set_params(acquisition__strategy=strategy).query(pool, n_instances=40)
        # The skills serve the analysis only. A query never reads them.
        chosen[strategy] = Counter(skills[i] for i in index)
        print(f"{strategy:>11} selects {dict(chosen[strategy].most_common())}")

    found = learner.uncertainty(pool[:5])
    print("the first five items: base model's entropy / mutual information / score of the query:")
    for item, base, full, mixed, answer in zip(
        pool, found.base, found.full, found.mixed, found.answers, strict=False
    ):
        print(f"  {base:.2f} / {full:.1e} / {mixed:.2f}  {item['question']} -> {answer}")
    return chosen


if __name__ == "__main__":
    main()
