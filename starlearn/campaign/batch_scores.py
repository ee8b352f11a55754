"""Choice of a round's batch by the learner's query, with reasons and the scores of all items."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.paths import CampaignPaths
from starlearn.campaign.rounds import Issued, Round
from starlearn.campaign.snapshot import write_table
from starlearn.distributed.ray_workers import workers_of
from starlearn.errors import InputError
from starlearn.learner.estimator import STARLearner
from starlearn.learner.inputs import checked_pool
from starlearn.learner.session import session_of
from starlearn.query.acquisition import screening
from starlearn.query.score_table import Uncertainty
from starlearn.settings import Acquisition
from starlearn.storage.files import make_folder

COLUMNS = (
    "base",
    "full",
    "entropy",
    "mutual_information",
    "n_tokens",
    "confidence",
    "mixed",
)


def choose(
    paths: CampaignPaths, learner: STARLearner, pool: pa.Table, found: Round, engine: Any = None
) -> list[Issued]:
    """Choose the batch of a round among the m items of a pool, a table with columns id and content.

    The learner keeps finished chunks in the campaign folder: after an interruption they are read
    instead of computed. Content and seed break ties between equal scores, so that the same pool
    gives the same batch in any order.
    """
    acquisition = (learner.acquisition or Acquisition()).resolved()
    items = [json.loads(content) for content in pool["content"].to_pylist()]
    # An interrupted query with other settings may have left scores that this query does not write.
    paths.round_scores(found.id).unlink(missing_ok=True)
    try:
        picked, _, metrics = learner.query(items, found.n, return_metrics=True, engine=engine)
    except InputError as error:
        counted = f" (Rows are counted within the {len(items)} items without a label.)"
        raise InputError(f"{error}{counted if 'row ' in str(error) else ''}") from error
    failpoint("query_scored")
    scores = _write_scores(paths, learner, acquisition, pool, items, found, engine)
    return [
        Issued(
            item=pool["id"][row].as_py(),
            content=pool["content"][row].as_py(),
            place=number,
            score=None if np.isnan(metrics[number]) else float(metrics[number]),
            reason=_reason(learner, acquisition, number, len(items), metrics, scores, row),
        )
        for number, row in enumerate(picked.tolist())
    ]


def _write_scores(
    paths: CampaignPaths,
    learner: STARLearner,
    acquisition: Acquisition,
    pool: pa.Table,
    items: list[dict[str, str]],
    found: Round,
    engine: Any,
) -> Uncertainty | None:
    """Write and return the scores of all items; None where the query did not score them all."""
    if (
        acquisition.strategy != "uncertainty"
        or acquisition.screen is not None
        or acquisition.sub_pool is not None
    ):
        return None
    session = session_of(learner)
    rows, fields = checked_pool(items, session.parts.task, "pool")
    # The plan of the query, whose scores are stored: nothing is computed a second time.
    plan = session.plan(rows, fields, workers=workers_of(engine, learner)).for_query()
    scores = session.uncertainty(plan)
    columns: dict[str, Any] = {"id": pool["id"]}
    for name in COLUMNS:
        values = getattr(scores, name)  # None for a base model that was not run
        columns[name] = pa.nulls(len(items), pa.float64()) if values is None else pa.array(values)
    table = pa.table({**columns, "answer": [str(answer) for answer in scores.answers]})
    make_folder(paths.scores)
    facts = {"weight of base": repr(_weight(learner, acquisition)), "measure": acquisition.measure}
    write_table(paths.round_scores(found.id), table, facts)
    failpoint("query_scores_written")
    return scores


def _weight(learner: STARLearner, acquisition: Acquisition) -> float:
    """Return lambda(t), the weight of the base model in the query's ranking."""
    if not hasattr(learner, "adapter_"):
        return 1.0
    return acquisition.base_weight(max(len(learner.rounds_) - 1, 0))


def _reason(
    learner: STARLearner,
    acquisition: Acquisition,
    rank: int,
    m: int,
    metrics: NDArray[np.float64],
    scores: Uncertainty | None,
    row: int,
) -> str:
    """Return one line that says why an item was chosen."""
    if np.isnan(metrics[rank]):
        return f"drawn at random: place {rank + 1} of {m}"
    trained = hasattr(learner, "adapter_")
    used = acquisition if trained else screening(acquisition)  # the base model has no masks
    how = used.measure.replace("_", " ")
    if acquisition.diversity != "none":
        how = f"{how} and {acquisition.diversity}"
    reason = f"{how}: place {rank + 1} of {m} (score {metrics[rank]:.4g}"
    if scores is None:
        return f"{reason})"
    weight = _weight(learner, acquisition)
    parts = []
    if weight > 0 and scores.base is not None:
        parts = [f"base model {scores.base[row]:.4g}"]
    if trained:
        parts = [f"{part} with weight {weight:g}" for part in parts]
        parts.append(f"fine-tuned {scores.full[row]:.4g}")
    return f"{reason}; {', '.join(parts)}); the model says {scores.answers[row]!r:.80}"
