"""
How does the weight of the base model move a ranking?
=====================================================

STAR mixes the uncertainties of the base model and of the fine-tuned model. The weight of the base
model falls over the rounds. How different are the two rankings, and which one does a query follow
in each round?
"""

# %%
# The example runs three rounds of query and teach. After each training, the pool is scored once.
# ``base`` and ``full`` are the two uncertainties. ``mixed`` is the score that a query of that round
# ranks by.

import matplotlib.pyplot as plt
from scipy.stats import spearmanr

from starlearn import Acquisition, ChoiceTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import make_pool

N_ITEMS, N_BATCH, N_ROUNDS, STEPS = 260, 30, 3, 80

data = make_pool("skewed", n_items=N_ITEMS, n_test=60, random_state=3)
known = dict(zip((item["question"] for item in data.items), data.labels, strict=True))
learner = STARLearner(
    task=ChoiceTask(data.prompt, choices=data.choices),
    adapter=LoRA(r=16, alpha=32),
    acquisition=Acquisition(measure="entropy", schedule="published"),
    training=Training(max_steps=STEPS, learning_rate=3e-3),
    random_state=3,
    verbose=False,
)
learner.fit(data.items[:N_BATCH], data.labels[:N_BATCH])
pool = data.items[N_BATCH:]

rounds = []
for t in range(N_ROUNDS):
    found = learner.uncertainty(pool)
    correlations = [
        float(spearmanr(one, other).statistic)
        for one, other in (
            (found.base, found.full),
            (found.base, found.mixed),
            (found.full, found.mixed),
        )
    ]
    weight = learner.acquisition.base_weight(t)
    rounds.append((weight, *correlations))
    print(
        f"round {t}: weight {weight:.1f}, rank correlation of base and full {correlations[0]:+.2f}"
    )
    index, batch = learner.query(pool, n_instances=N_BATCH)
    learner.teach(batch, [known[item["question"]] for item in batch])
    taken = set(index.tolist())
    pool = [item for i, item in enumerate(pool) if i not in taken]

# %%
# The left panel shows the published schedule over ten rounds. The right panel shows the measured
# rounds. While the weight is high, the query's ranking is nearly that of the base model, whatever
# the training has changed.

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
left.step(range(10), [learner.acquisition.base_weight(t) for t in range(10)], where="post")
left.set(xlabel="round", ylabel="weight of the base model", ylim=(0, 1), title="published schedule")
for column, name in enumerate(("base and full", "base and mixed", "full and mixed"), start=1):
    right.plot([row[column] for row in rounds], marker="o", label=name)
right.set(xlabel="round", ylabel="rank correlation", ylim=(-1, 1.05), title="measured")
right.set_xticks(range(N_ROUNDS))
right.axhline(0, color="0.8", zorder=0)
right.legend(frameon=False)

# %%
# **What this does not show**: which weight is best. Where the two models disagree, the schedule
# decides which ranking counts, and the published one favours the base model for many rounds.
# Whether that is too many on some task needs many seeds (:doc:`/evidence`).
