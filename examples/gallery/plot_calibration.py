"""
Are the predicted probabilities reliable?
=========================================

An adapter trained on few labels is over-confident. How far is ``predict_proba`` from the share of
correct answers, and how much of this does a single temperature correct?
"""

# %%
# A temperature divides the logarithms of all probabilities by one number T. It changes the
# confidence of an answer, and not the answer (Guo et al. 2017, arXiv 1706.04599). ``calibrate``
# finds a temperature without further labels: it trains adapters on a part of the labelled set, and
# evaluates them on the rest. For comparison, a second temperature is fitted on half of the held-out
# items, which a user would have to label.

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
# confidence. Each bin is weighted by its number of answers.


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
axes.set(xlabel="confidence", ylabel="share of correct answers", xlim=(0, 1), ylim=(0, 1))
axes.legend(frameon=False)

# %%
# **What this does not show**: that a temperature fits other items. One skill makes up 80 % of the
# labelled set, and the test set is balanced over five skills. A temperature for one set need not
# fit the other. One number corrects over-confidence that is the same for all answers. It cannot
# correct a model that is confidently wrong on a single skill. A temperature changes no query.
