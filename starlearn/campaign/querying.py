"""A query of a campaign, step by step: mark the round, score, choose, issue."""

import json
import warnings
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

from starlearn.campaign import rounds
from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.folder import Ground
from starlearn.campaign.rounds import Round
from starlearn.distributed.cluster import RayEngine, engine_of
from starlearn.errors import InputError


def query(campaign: Ground, n_instances: int, strict: bool, engine: Any = None) -> None:
    """Issue the batch of a new round, or of the round whose scoring was interrupted.

    A query that had come to its end before the process died is not repeated: the batch that is
    open is the answer. A batch that was gone through without a label, in a campaign that has none
    yet, leaves nothing to train on, and another one may be asked for.

    Raises
    ------
    InputError
        When a batch of another size is open, or the labels of one wait for their training.
    MissingDependencyError
        When the engine is not installed.
    """
    engine = engine_of(engine) if engine == "ray" else engine
    last = rounds.current(campaign.store)
    if last is not None and last.state == "issued" and last.n == n_instances:
        return
    nothing = last is not None and last.state == "labelled" and not campaign.labels()
    if last is not None and _waits(campaign, last) and not nothing:
        raise InputError(waiting_message(campaign, last))
    if last is None or last.state == "published" or nothing:
        n_instances = _clipped(n_instances, campaign.n_left(before=None), strict)
        if n_instances == 0:
            return
        last = rounds.begin(campaign.store, n_instances, _params(campaign))
        failpoint("query_marked")
    _score_and_issue(campaign, _as_asked(campaign, last, n_instances, engine), engine)


def engine_again(last: Round) -> Any:
    """Return the engine that an interrupted scoring began with: what it has finished is there."""
    settings = last.record.get("engine")
    return None if settings is None else RayEngine(**settings)


def waiting_message(campaign: Ground, last: Round) -> str:
    """Say which round is open and what to do with it."""
    batch = len(rounds.batch_of(campaign.store, last.id))
    if last.state == "issued":
        return (
            f"Round {last.id} has an open batch of {batch} items. Label them: starlearn label "
            f"{campaign.folder}, campaign.label(...); or train on the labels that there are: "
            f"starlearn teach {campaign.folder}, campaign.teach()."
        )
    return (
        f"The {batch} items of round {last.id} are {last.state}: train on their labels first. "
        f"starlearn teach {campaign.folder}, campaign.teach()."
    )


def _waits(campaign: Ground, last: Round) -> bool:
    if last.state == "failed":
        return bool(rounds.batch_of(campaign.store, last.id))
    return last.state in ("issued", "labelled", "training")


def _clipped(n_instances: int, left: int, strict: bool) -> int:
    if n_instances <= left:
        return n_instances
    message = f"n_instances={n_instances} is more than the {left} items that are left in the pool"
    if strict:
        raise InputError(f"{message}. Ask for at most {left}.")
    if left:
        warnings.warn(f"{message}; the batch has {left}.", UserWarning, stacklevel=4)
    return left


def _params(campaign: Ground) -> dict[str, Any]:
    """Return what decides the scores of a round."""
    recipe = json.loads(campaign.meta["learner"])
    published = campaign.published()
    deciding = {key: recipe[key] for key in ("model", "task", "quantization", "acquisition")}
    return {
        "seed": recipe["random_state"],
        "adapter": published.manifest if published else None,
        "settings": sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest(),
    }


def _as_asked(campaign: Ground, last: Round, n_instances: int, engine: Any) -> Round:
    """Bring an interrupted round to what is asked for now; its scores stay good if they can."""
    record = {name: value for name, value in last.record.items() if name != "engine"}
    if isinstance(engine, RayEngine):
        folder = None if engine.folder is None else str(Path(engine.folder).absolute())
        record["engine"] = {**asdict(engine), "folder": folder}
    with campaign.store.transaction():
        rounds.change(
            campaign.store,
            last.id,
            state="scoring",
            n=min(n_instances, campaign.n_left(before=last.seen)),
            params=_params(campaign),
            record=record,
            error=None,
        )
    found = rounds.current(campaign.store)
    return last if found is None else found


def _score_and_issue(campaign: Ground, found: Round, engine: Any) -> None:
    from starlearn.campaign import batch_scores, snapshot
    from starlearn.errors import StarlearnError

    began = perf_counter()
    try:
        pool = snapshot.without(campaign.snapshot(), campaign.done(before=found.seen))
        batch = batch_scores.choose(campaign.place, campaign.learner(), pool, found, engine)
    except StarlearnError as error:
        with campaign.store.transaction():
            rounds.change(campaign.store, found.id, state="failed", error=str(error))
        raise
    record = {
        **found.record,
        "pool": pool.num_rows,
        "query_seconds": perf_counter() - began,
        "mean_score": _mean([issued.score for issued in batch]),
    }
    rounds.issue(campaign.store, found.id, batch, record)
    failpoint("query_issued")


def _mean(scores: list[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None
