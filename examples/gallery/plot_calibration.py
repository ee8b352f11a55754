"""
Can the probabilities be believed?
==================================

An adapter that was trained on few labels is over-confident. How far is ``predict_proba`` from the
share of right answers, and how much of that does a single temperature repair?
"""

# %%
# A temperature divides the logarithms of all probabilities by one number T; it changes no answer,
# only how sure it is (Guo et al. 2017, arXiv 1706.04599). ``calibrate`` finds one without further
# labels: adapters that are trained on a part of the labelled set are judged on the rest. Beside it
# stands one that was fitted on half of the held-out items, which a user would have to label.

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import log_loss

from starlearn import ChoiceTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import make_pool

N_LABELS, N_HELD, STEPS, BINS = 60, 400, 120, 8

data = make_pool("skewed", n_items=N_LABELS, n_test=N_HELD, random_state=7)
learner = STARLearner(
    task=ChoiceTask(data.prompt, choices=data.choices),
    adapter=LoRA(r=16, alpha=32),
    training=Training(max_steps=STEPS, learning_rate=3e-3),
    random_state=7,
    verbose=False,
)
learner.fit(data.items, data.labels)
columns = {label: column for column, label in enumerate(learner.classes_)}
truth = np.array([columns[label] for label in data.test_labels])
logs = np.log(np.clip(learner.predict_proba(data.test_items), 1e-12, None))
fitting, judging = slice(0, N_HELD // 2), slice(N_HELD // 2, N_HELD)


def tempered(temperature):
    return softmax(logs / temperature, axis=1)


def loss(temperature, rows):
    return log_loss(truth[rows], tempered(temperature)[rows], labels=range(len(columns)))


best = minimize_scalar(lambda t: loss(t, fitting), bounds=(0.2, 20), method="bounded").x
own = learner.calibrate(n_splits=3).rounds_[-1]["temperature"]

# %%
# The expected calibration error is the mean distance between confidence and accuracy over bins of
# confidence, weighted by how many answers are in a bin.


def reliability(temperature):
    probabilities = tempered(temperature)[judging]
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth[judging]
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = [
        (confidence[place == b].mean(), right[place == b].mean(), (place == b).sum())
        for b in np.unique(place)
    ]
    error = sum(n * abs(sure - share) for sure, share, n in rows) / len(right)
    return np.array(rows), error, right.mean()


figure, axes = plt.subplots(figsize=(4.5, 4.5), layout="constrained")
axes.plot([0, 1], [0, 1], color="0.8")
temperatures = {
    "as trained": 1.0,
    f"calibrate(): T = {own:.2f}": own,
    f"held-out labels: T = {best:.2f}": best,
}
for name, temperature in temperatures.items():
    rows, error, accuracy = reliability(temperature)
    axes.scatter(
        rows[:, 0], rows[:, 1], s=4 * rows[:, 2], alpha=0.7, label=f"{name}: error {error:.3f}"
    )
    print(
        f"{name:>26}: accuracy {accuracy:.3f}, expected calibration error {error:.3f}, "
        f"log loss {loss(temperature, judging):.3f} nats"
    )
axes.set(xlabel="confidence", ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1))
axes.legend(frameon=False)

# %%
# **What this does not show**: that a temperature holds for other items. The labelled set here is
# four fifths one skill and the test set is balanced over five, so what is learnt about confidence
# on the one need not fit the other. One number repairs over-confidence that is alike for all
# answers; where the model is sure and wrong on one skill only, it cannot. No query changes.
