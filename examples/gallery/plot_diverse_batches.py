"""
How different is a diverse batch?
=================================

The most uncertain items can be n variants of one question. ``Acquisition(diversity="kmeans++")``
draws a batch of dissimilar items from the most uncertain ones. How dissimilar are they, and how
much uncertainty does that cost?
"""

# %%
# There is one adapter and one pool. Only the batch selection differs.

from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances

from starlearn import ChoiceTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import make_pool

N_ITEMS, N_LABELS, N_BATCH, STEPS = 340, 40, 20, 100

data = make_pool("skewed", n_items=N_ITEMS, n_test=50, random_state=5)
learner = STARLearner(
    task=ChoiceTask(data.prompt, choices=data.choices),
    adapter=LoRA(r=16, alpha=32),
    training=Training(max_steps=STEPS, learning_rate=3e-3),
    random_state=5,
    verbose=False,
)
learner.fit(data.items[:N_LABELS], data.labels[:N_LABELS])
pool, skills = data.items[N_LABELS:], data.skills[N_LABELS:]

# %%
# ``transform`` returns the base model's hidden states. ``diversity`` uses the same states.

points = learner.transform(pool)
flat = PCA(n_components=2, random_state=0).fit_transform(points)
mixed = learner.uncertainty(pool).mixed

batches = {}
for kind in ("none", "kmeans++", "k-centre"):
    index, _ = learner.set_params(acquisition__diversity=kind).query(pool, n_instances=N_BATCH)
    batches[kind] = index
    distances = pairwise_distances(points[index], metric="cosine")
    nearest = np.median(np.partition(distances + np.eye(len(index)), 0, axis=1)[:, 0])
    print(
        f"{kind:>9}: median cosine distance to the nearest item of the batch {nearest:.4f}, "
        f"mean score {mixed[index].mean():.2f}, {dict(Counter(skills[i] for i in index))}"
    )

# %%

figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), sharex=True, sharey=True, layout="constrained")
for axis, (kind, index) in zip(axes, batches.items(), strict=True):
    shown = axis.scatter(*flat.T, c=mixed, s=8, cmap="Greys", vmin=0, vmax=1)
    axis.scatter(*flat[index].T, s=30, facecolors="none", edgecolors="C3")
    axis.set_title(f'diversity="{kind}"')
figure.colorbar(shown, ax=axes, label="uncertainty (mixed ranks)")

# %%
# The map shows two of many dimensions, so items whose circles touch may still differ. **What this
# does not show**: that dissimilar items teach more. Every batch leaves out exact duplicates by
# default (``distinct="exact"``). Diversity also trades uncertainty for spread. Whether this helps
# depends on the pool.
