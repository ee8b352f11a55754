"""
When do the stopping rules advise to stop?
==========================================

Three rules watch the same campaign. They stop when the learning curve is flat, when successive
models make the same predictions, or when the pool is empty. When does each rule stop, and would
that have been right?
"""

# %%
# A labelling effort is simulated round by round. The test set gives the accuracy. A stop set of
# unlabelled items gives the agreement of successive models, which needs no labels. Seven rounds are
# few, so windows and the level of agreement are below the defaults (5, 3, 0.99).

import matplotlib.pyplot as plt

from starlearn import ChoiceTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import make_pool
from starlearn.query.stopping import advise, agreement, rounds_of

N_POOL, N_BATCH, N_ROUNDS, STEPS, N_TEST = 200, 25, 7, 60, 100

data = make_pool("homogeneous", n_items=N_POOL + 100, n_test=N_TEST, random_state=6)
known = dict(zip((item["question"] for item in data.items), data.labels, strict=True))
stop_set, pool = data.items[:100], data.items[100:]
learner = STARLearner(
    task=ChoiceTask(data.prompt, choices=data.choices),
    adapter=LoRA(r=16, alpha=32),
    training=Training(max_steps=STEPS, learning_rate=3e-3),
    random_state=6,
    verbose=False,
)

accuracy, kappas, advised, before = [], [], [], None
rules = {
    "flat_learning_curve": {"next_labels": N_BATCH, "window": 4},
    "stabilised_predictions": {"window": 2, "level": 0.9},
    "exhausted_pool": {"next_labels": N_BATCH},
}
for _ in range(N_ROUNDS):
    index, batch = learner.query(pool, n_instances=N_BATCH)
    learner.teach(batch, [known[item["question"]] for item in batch])
    taken = set(index.tolist())
    pool = [item for i, item in enumerate(pool) if i not in taken]
    accuracy.append(learner.score(data.test_items, data.test_labels))
    now = learner.predict(stop_set)
    kappas.append(None if before is None else agreement(before, now))
    before = now
    history = rounds_of(learner.rounds_, accuracy=accuracy, agreement=kappas)
    advised.append({advice.rule: advice for advice in advise(history, rules)})

for rule in rules:
    print(f"{rule}: {advised[-1][rule].reason}")

# %%
# Marks show the rounds after which a rule advises to stop.

labels = [record["n_labels"] for record in learner.rounds_]
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
axes.plot(labels, accuracy, marker="o", color="0.3", label="accuracy")
axes.plot(labels[1:], kappas[1:], marker=".", ls=":", color="0.6", label="agreement (kappa)")
for place, rule in enumerate(rules):
    stops = [n for n, advice in zip(labels, advised, strict=True) if advice[rule].stop]
    axes.plot(
        stops, [1.06 + 0.06 * place] * len(stops), "s", color=f"C{place}", label=f"stop: {rule}"
    )
axes.set(xlabel="labels", ylabel="accuracy, kappa", ylim=(0, 1.28))
axes.legend(frameon=False, fontsize="small", ncols=2, loc="lower right")

# %%
# **What this does not show**: where you should stop. With 100 test items, accuracy is off by four
# points either way, so a flat curve looks like a slow one. A rule without a mark had too few
# rounds. Checking after every round increases the chance of stopping too early. The docstring of
# ``flat_learning_curve`` gives the size of this effect.
