"""
How much do wrong labels cost?
==============================

Annotators make mistakes. This example replaces a share of the labels by a wrong choice. How much
accuracy does that cost, and can the model that was trained on wrong labels find them?
"""

# %%
# Items, order of training and initial weights are the same each time. Only the labels differ.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import roc_auc_score

from starlearn import ChoiceTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import make_pool

N_LABELS, N_TEST, STEPS = 120, 150, 90
SHARES = (0.0, 0.1, 0.2, 0.4)

data = make_pool("homogeneous", n_items=N_LABELS, n_test=N_TEST, random_state=8)
draws = np.random.default_rng(8)
order = draws.permutation(N_LABELS)
wrong = [draws.choice([c for c in data.choices if c != label]) for label in data.labels]

accuracy, found = [], []
for share in SHARES:
    flipped = np.isin(np.arange(N_LABELS), order[: round(share * N_LABELS)])
    labels = [str(w) if f else r for w, r, f in zip(wrong, data.labels, flipped, strict=True)]
    learner = STARLearner(
        task=ChoiceTask(data.prompt, choices=data.choices),
        adapter=LoRA(r=16, alpha=32),
        training=Training(max_steps=STEPS, learning_rate=3e-3),
        random_state=8,
        verbose=False,
    ).fit(data.items, labels)
    accuracy.append(learner.score(data.test_items, data.test_labels))
    line = f"{share:>4.0%} wrong: accuracy {accuracy[-1]:.3f}"
    if flipped.any():
        column = [learner.classes_.tolist().index(label) for label in labels]
        given = learner.predict_proba(data.items)[np.arange(N_LABELS), column]
        found.append(roc_auc_score(flipped, -given))
        line += f", a wrong label is less likely than a right one in {found[-1]:.0%} of pairs"
    print(line)

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
left.plot(SHARES, accuracy, marker="o")
left.set(xlabel="share of wrong labels", ylabel="test accuracy", ylim=(0, 1))
right.plot(SHARES[1:], found, marker="o", color="C1")
right.axhline(0.5, color="0.8")
right.set(xlabel="share of wrong labels", ylabel="area under the ROC curve", ylim=(0, 1.02))
right.set_title("finding wrong labels by their probability", fontsize="medium")

# %%
# A model that has memorised its labels finds no wrong ones. The right panel shows how well this
# model finds them. In a campaign, check the labels to which the model gives the lowest probability,
# or have each item labelled twice with ``--per-item 2``. **What this does not show**: the mistakes
# of people. People make mistakes on hard items, which uncertainty also selects, and not at random
# as here.
