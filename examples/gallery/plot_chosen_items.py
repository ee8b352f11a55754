"""
Which items does uncertainty choose?
====================================

80 % of the items of this pool need a skill that the base model already has. Random choice spends
80 % of the labels on it. Which items are selected by the base model's uncertainty, by the
fine-tuned model's, by the published mix of both, and by the default?
"""

# %%
# A learner is trained on a few random labels. The skills are known because the pool is generated.
# No learner reads them.

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np

from starlearn import Acquisition, ChoiceTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import make_pool

N_ITEMS, N_LABELS, N_BATCH, STEPS = 500, 40, 40, 100

data = make_pool("skewed", n_items=N_ITEMS, n_test=100, random_state=2)
learner = STARLearner(
    task=ChoiceTask(data.prompt, choices=data.choices),
    adapter=LoRA(r=16, alpha=32),
    training=Training(max_steps=STEPS, learning_rate=3e-3),
    random_state=2,
    verbose=False,
)
learner.fit(data.items[:N_LABELS], data.labels[:N_LABELS])
pool, skills = data.items[N_LABELS:], data.skills[N_LABELS:]

# %%
# ``schedule`` is the weight of the base model's uncertainty. With 1, only the base model counts,
# and with 0 only the fine-tuned model. "published" is STAR's 0.9 in this round. The default uses
# the mutual information of the fine-tuned model's answer and the dropout mask. A query does not
# depend on earlier queries, so the five batches can be compared.

arms = {
    "random": Acquisition(strategy="random"),
    "entropy, base model": Acquisition(measure="entropy", schedule=1.0),
    "entropy, fine-tuned": Acquisition(measure="entropy", schedule=0.0),
    "STAR as published": Acquisition(measure="entropy", schedule="published"),
    "the default": Acquisition(),
}
chosen = {}
for name, acquisition in arms.items():
    index, _ = learner.set_params(acquisition=acquisition).query(pool, n_instances=N_BATCH)
    chosen[name] = Counter(skills[i] for i in index)
    print(f"{name:>20}: {dict(chosen[name].most_common())}")

# %%

kinds = sorted(set(skills), key=skills.count, reverse=True)
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
left = np.zeros(len(arms))
for kind in kinds:
    counts = np.array([chosen[name][kind] for name in arms])
    axes.barh(list(arms), counts, left=left, label=kind)
    left += counts
axes.invert_yaxis()
axes.set_xlabel(f"items of a batch of {N_BATCH}")
axes.set_title("Skills in the batch")
axes.legend(ncols=len(kinds), loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)

# %%
# **What this does not show**: that the batch improves the model. This is one round with one seed,
# and the pool was made so that the choice matters. On a pool where all items are alike, every batch
# is as good as a random one. A learning curve over many seeds shows whether the labels help
# (:doc:`/evidence`).
