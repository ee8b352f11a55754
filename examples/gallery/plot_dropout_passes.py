"""
Do Monte-Carlo dropout passes change a ranking?
===============================================

Each dropout pass costs as much as a pass without dropout. What do K passes change? One trained
adapter ranks the same pool without dropout, and with 3 and 10 passes. A second ranking with 3
passes and another seed shows how much of the change is chance.
"""

# %%
# The adapter is trained once, with the published dropout of 0.1 on A.

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr

from starlearn import Acquisition, ChoiceTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import make_pool

N_ITEMS, N_LABELS, N_BATCH, STEPS, MANY = 240, 40, 40, 100, 10

data = make_pool("noisy", n_items=N_ITEMS, n_test=50, random_state=4)
learner = STARLearner(
    task=ChoiceTask(data.prompt, choices=data.choices),
    adapter=LoRA(r=16, alpha=32, dropout=0.1),
    acquisition=Acquisition(measure="entropy"),
    training=Training(max_steps=STEPS, learning_rate=3e-3),
    random_state=4,
    verbose=False,
)
learner.fit(data.items[:N_LABELS], data.labels[:N_LABELS])
pool = data.items[N_LABELS:]


def scored(n_passes, seed=4):
    """Return the entropy and the mutual information of every item."""
    learner.seed_ = seed  # changes the masks, and not the adapter
    found = learner.set_params(acquisition__n_passes=n_passes).uncertainty(pool)
    return found.entropy, found.mutual_information


none, _ = scored(1)
three, information = scored(3)
other, other_information = scored(3, seed=5)
ten, _ = scored(MANY)

# %%
# Compare two rankings by their rank correlation, and by the share of common items in a batch.


def compared(one, two):
    best = [set(np.argsort(-scores, kind="stable")[:N_BATCH].tolist()) for scores in (one, two)]
    return float(spearmanr(one, two).statistic), len(best[0] & best[1]) / N_BATCH


pairs = {
    "entropy: no dropout, K = 3": (none, three),
    f"entropy: no dropout, K = {MANY}": (none, ten),
    "entropy: K = 3, another seed": (three, other),
    "mutual information: K = 3, another seed": (information, other_information),
    "no dropout's entropy, mutual information": (none, information),
}
results = {name: compared(*pair) for name, pair in pairs.items()}
for name, (rho, overlap) in results.items():
    print(f"{name:42} rho {rho:.3f}, {overlap:.0%} of the batch in common")

# %%

figure, axes = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
axes[0].scatter(none, three, s=8)
axes[0].set(xlabel="entropy without dropout (nats)", ylabel="mean entropy, K = 3 (nats)")
axes[1].scatter(none, information, s=8, color="C1")
axes[1].set(xlabel="entropy without dropout (nats)", ylabel="mutual information, K = 3 (nats)")

# %%
# **What this shows**: with the entropy, passes change a few items of a batch, about as many as
# another seed does. The mutual information selects other items, but with 3 passes another seed also
# changes many of them. **What this does not show**: which items are better. :doc:`/evidence` has
# the same comparison over three pools, rates and seeds.
