"""Does uncertainty simply select long answers? Sum, mean and residual on free-form answers.

The code published with STAR sums the entropies of all answer tokens. A long answer then looks
uncertain because it is long. The default of starlearn is the mean per token. This example trains
on answers of several steps. It prints the rank correlation of each score with the length of the
model's own answer.

    python examples/length_bias.py

The labels of this task have 8 to 26 tokens. Check the same correlation on your own data before you
trust any of the three. A mean does not solve everything: it can favour short answers instead.
"""

from scipy.stats import spearmanr

from starlearn import Acquisition, GenerationTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import make_pool


def main(max_steps: int = 150, n_items: int = 300) -> dict[str, float]:
    """Print the rank correlation of score and answer length for each reduction."""
    data = make_pool("steps", n_items=n_items, n_test=50, random_state=1)
    learner = STARLearner(
        task=GenerationTask(data.prompt, max_new_tokens=32, answer_pattern=data.answer_pattern),
        adapter=LoRA(r=16, alpha=32),
        acquisition=Acquisition(measure="entropy"),
        training=Training(max_steps=max_steps, learning_rate=3e-3),
        random_state=1,
        verbose=False,
    )
    learner.fit(data.items[:60], data.labels[:60])
    correlation = {}
    for reduce in ("sum", "mean", "residual"):
        found = learner.set_params(acquisition__reduce=reduce).uncertainty(data.items[60:])
        correlation[reduce] = float(spearmanr(found.full, found.n_tokens).statistic)
        print(f"{reduce:>8}: correlation with length {correlation[reduce]:+.2f}")
    return correlation


if __name__ == "__main__":
    main()
