"""One query of a campaign: mark the round, score, choose, issue."""

import json
import shlex
import warnings
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

from starlearn.campaign import rounds
from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.folder import CampaignFolder
from starlearn.campaign.rounds import Round
from starlearn.distributed.cluster import RayEngine, engine_of
from starlearn.errors import InputError, StarlearnError
from starlearn.storage.files import file_sha256


def query(campaign: CampaignFolder, n_instances: int, strict: bool, engine: Any = None) -> None:
    """Issue the batch of a new round, or of the round whose scoring was interrupted.

    Nothing happens while a batch of this size is open: it is the result. A finished batch without
    any label in the campaign leaves nothing to train on, so another batch can follow it.
    """
    engine = engine_of(engine) if engine == "ray" else engine
    last = rounds.current(campaign.store)
    if last is not None and last.state == "issued" and last.n == n_instances:
        return
    no_labels = last is not None and last.state == "labelled" and not campaign.labels()
    if last is not None and _waits(campaign, last) and not no_labels:
        raise InputError(waiting_message(campaign, last))
    if last is None or last.state == "published" or no_labels:
        n_instances = _clipped(n_instances, campaign.n_left(until=None), strict)
        if n_instances == 0:
            return
        last = rounds.begin(campaign.store, n_instances, _params(campaign))
        failpoint("query_marked")
    _score_and_issue(campaign, _updated(campaign, last, n_instances, engine), engine)


def engine_of_round(campaign: CampaignFolder, last: Round) -> Any:
    """Return the engine that an interrupted scoring began with: its finished chunks are kept.

    A campaign can come from somebody else. So a cluster, or a folder outside of the campaign, that
    only its label store names is not used without being named again.
    """
    settings = last.record.get("engine")
    if settings is None:
        return None
    folder = settings.get("folder")
    is_inside = folder is None or Path(folder).resolve().is_relative_to(campaign.folder.resolve())
    if settings.get("address") is None and is_inside:
        return RayEngine(**settings)
    named = {name: settings[name] for name in ("address", "folder") if settings.get(name)}
    raise InputError(
        f"Round {last.id} was scored with {named}, outside of {campaign.folder}. If you know them, "
        f"name them again: starlearn query {shlex.quote(str(campaign.folder))} -n {last.n} "
        "--engine ray --address ..., campaign.query(n, engine=RayEngine(...)). Without an engine "
        "the scoring starts again."
    )


def waiting_message(campaign: CampaignFolder, last: Round) -> str:
    """Return the message about the open round, with the next command."""
    batch = len(rounds.batch_of(campaign.store, last.id))
    if last.state == "issued":
        return (
            f"Round {last.id} has an open batch of {batch} items. Label them: starlearn label "
            f"{campaign.folder}, campaign.label(...); or train on the labels so far: "
            f"starlearn teach {campaign.folder} --partial, campaign.teach(partial=True)."
        )
    return (
        f"The {batch} items of round {last.id} are {last.state}: train on their labels first. "
        f"starlearn teach {campaign.folder}, campaign.teach()."
    )


def _waits(campaign: CampaignFolder, last: Round) -> bool:
    if last.state == "failed":
        return bool(rounds.batch_of(campaign.store, last.id))
    return last.state in ("issued", "labelled", "training")


def _clipped(n_instances: int, left: int, strict: bool) -> int:
    if n_instances <= left:
        return n_instances
    message = f"n_instances={n_instances} is more than the {left} items that are left in the pool"
    if strict:
        raise InputError(f"{message}. Use at most {left}.")
    if left:
        warnings.warn(f"{message}; the batch has {left}.", UserWarning, stacklevel=4)
    return left


def _params(campaign: CampaignFolder) -> dict[str, Any]:
    """Return everything that determines the scores of a round."""
    settings = json.loads(campaign.meta["learner"])
    published = campaign.published()
    determining = {key: settings[key] for key in ("model", "task", "quantization", "acquisition")}
    return {
        "seed": settings["random_state"],
        "adapter": published.manifest if published else None,
        "settings": sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest(),
    }


def _updated(campaign: CampaignFolder, last: Round, n_instances: int, engine: Any) -> Round:
    """Write the arguments of this query to an interrupted round; finished chunks stay usable."""
    record = {name: value for name, value in last.record.items() if name != "engine"}
    if isinstance(engine, RayEngine):
        folder = None if engine.folder is None else str(Path(engine.folder).absolute())
        record["engine"] = {**asdict(engine), "folder": folder}
    rounds.change(
        campaign.store,
        last.id,
        state="scoring",
        n=min(n_instances, campaign.n_left(until=last.seen)),
        params=_params(campaign),
        record=record,
        error=None,
    )
    return rounds.rounds(campaign.store)[-1]


def _score_and_issue(campaign: CampaignFolder, found: Round, engine: Any) -> None:
    from starlearn.campaign import batch_scores, snapshot

    began = perf_counter()
    try:
        pool = snapshot.without(campaign.snapshot(), campaign.items_done(until=found.seen))
        batch = batch_scores.choose(campaign.paths, campaign.learner(), pool, found, engine)
    except StarlearnError as error:
        rounds.change(campaign.store, found.id, state="failed", error=str(error))
        raise
    scores = [issued.score for issued in batch if issued.score is not None]
    kept = campaign.paths.round_scores(found.id)
    record = {
        **found.record,
        "pool": pool.num_rows,
        "query_seconds": perf_counter() - began,
        "mean_score": sum(scores) / len(scores) if scores else None,
        "scores": file_sha256(kept) if kept.is_file() else None,
    }
    rounds.issue(campaign.store, found.id, batch, record)
    failpoint("query_issued")
