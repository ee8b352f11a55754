"""Which 40 prompts would you label next? A first round, looked at item by item.

The pool is skewed: four in five items ask for a skill that the base model has already. Random
choice therefore spends four labels in five on it. What does the default query ask for
instead?

    python examples/choose_labels.py

One round with one seed shows how a query works, not that it saves labels: for that see
``starlearn study``, which pairs many seeds, and ``docs/evidence.md``.
"""

from collections import Counter

from starlearn import ChoiceTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import make_pool


def main(max_steps: int = 150) -> dict[str, Counter[str]]:
    """Train on 50 random labels, then ask for 40 more in both ways; print the skills chosen."""
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
    for strategy in ("random", "star"):
        index, _ = learner.set_params(acquisition__strategy=strategy).query(pool, n_instances=40)
        chosen[strategy] = Counter(
            skills[i] for i in index
        )  # for the analysis; a query never sees it
        print(f"{strategy:>6} asks for {dict(chosen[strategy].most_common())}")

    found = learner.uncertainty(pool[:5])
    print("the first five: base model's entropy / mutual information / what the query ranks by:")
    for item, base, full, mixed, answer in zip(
        pool, found.base, found.full, found.mixed, found.answers, strict=False
    ):
        print(f"  {base:.2f} / {full:.1e} / {mixed:.2f}  {item['question']} -> {answer}")
    return chosen


if __name__ == "__main__":
    main()
