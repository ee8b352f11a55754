"""
How does the learner's own query work inside modAL's loop?
==========================================================

`modAL <https://modal-python.readthedocs.io>`_ runs a loop with a scikit-learn estimator and a query
strategy. ``STARLearner`` is such an estimator, and ``star_sampling`` is such a strategy. How does
it compare with modAL's own strategy and with random choice?
"""

# %%
# The loop comes from :mod:`starlearn.modal`, which repairs modAL's for scikit-learn 1.8 and later.
# A strategy is a function of the learner and the pool that returns positions and scores.

import matplotlib.pyplot as plt
import numpy as np
from modAL.uncertainty import uncertainty_sampling

from starlearn import ChoiceTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import make_pool
from starlearn.modal import ActiveLearner, star_sampling

N_ITEMS, N_INITIAL, N_BATCH, N_ROUNDS, STEPS = 240, 20, 20, 3, 70

data = make_pool("skewed", n_items=N_ITEMS, n_test=100, random_state=9)
labels = np.array(data.labels, dtype=object)


def random_sampling(learner, X_pool, n_instances=1):
    chosen = np.random.default_rng(len(X_pool)).choice(len(X_pool), n_instances, replace=False)
    return chosen, np.zeros(n_instances)


curves = {}
for strategy in (star_sampling, uncertainty_sampling, random_sampling):
    loop = ActiveLearner(
        STARLearner(
            task=ChoiceTask(data.prompt, choices=data.choices),
            adapter=LoRA(r=16, alpha=32),
            training=Training(max_steps=STEPS, learning_rate=3e-3),
            random_state=9,
            verbose=False,
        ),
        query_strategy=strategy,
        X_training=data.items[:N_INITIAL],
        y_training=labels[:N_INITIAL],
        random_state=9,
    )
    left = np.arange(N_INITIAL, N_ITEMS)
    accuracy = [loop.score(data.test_items, data.test_labels)]
    for _ in range(N_ROUNDS):
        index, batch = loop.query([data.items[i] for i in left], n_instances=N_BATCH)
        loop.teach(batch, labels[left[index]])
        left = np.delete(left, index)
        accuracy.append(loop.score(data.test_items, data.test_labels))
    curves[strategy.__name__] = accuracy
    print(f"{strategy.__name__:>20}: " + " ".join(f"{value:.2f}" for value in accuracy))

# %%

bought = N_INITIAL + N_BATCH * np.arange(N_ROUNDS + 1)
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, accuracy in curves.items():
    axes.plot(bought, accuracy, marker="o", label=name)
axes.set(xlabel="labels", ylabel="test accuracy", ylim=(0, 1), title="one seed: an illustration")
axes.legend(frameon=False)

# %%
# **What this does not show**: which strategy is better. Curves of one seed cross by chance.
# :doc:`/evidence` compares strategies over many paired seeds, with intervals. The example shows
# that the learner works in modAL's loop, and that it counts the rounds.
# ``Acquisition(schedule="published")`` needs this count, because the base model's weight falls from
# round to round.
