"""
How does the weight of the base model move a ranking?
=====================================================

STAR mixes two uncertainties: that of the base model, with a weight that falls over the rounds,
and that of the fine-tuned model. How far apart are the two, and whose ranking does a query follow
in which round?
"""

# %%
# Three rounds of query and teach. After each training the pool is scored once: ``base``, ``full``
# and ``mixed`` are the two parts, and what a query of that round would rank by.

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
# Left, the published schedule over ten rounds. Right, what the measured rounds followed: while
# the weight is high, the query's ranking is nearly the base model's, whatever the training has
# taught.

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
# **What this does not show**: which weight is best. Where base and fine-tuned model disagree, a
# schedule decides who is asked, and the published one trusts the base model for long. Whether that
# is too long on some task is a question for many seeds (:doc:`/evidence`).
