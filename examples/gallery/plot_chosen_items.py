"""
Which items does uncertainty choose?
====================================

Four in five items of this pool ask for a skill that the base model has already. Random choice
spends four labels in five on it. What do the base model's uncertainty, the fine-tuned model's,
the mixture of both as published, and the default spend them on?
"""

# %%
# A learner is trained on a few random labels. The skills are known because the pool is generated;
# no learner ever reads them.

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
# ``schedule`` is the weight of the base model's uncertainty: 1 asks it alone, 0 the fine-tuned
# model alone, and "published" is STAR's 0.9 in this round. The default asks the fine-tuned model
# for the mutual information of answer and dropout mask. A query is the same whatever was asked
# before, so the five can be compared.

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
axes.set_title("What the batch asks for")
axes.legend(ncols=len(kinds), loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)

# %%
# **What this does not show**: that the batch is worth its labels. It is one round with one seed,
# and the pool was made so that there is something to choose. On a pool where all items are alike
# every batch is as good as a random one; whether the labels pay is what a learning curve with
# many seeds shows (:doc:`/evidence`).
