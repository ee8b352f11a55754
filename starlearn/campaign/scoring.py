"""Scores of a round in chunks: what is finished stays finished, and the choice is the same."""

import json
import shutil
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from starlearn.campaign.durable import make_folder
from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.place import Place
from starlearn.campaign.rounds import Issued, Round
from starlearn.campaign.snapshot import read_scores, write_table
from starlearn.errors import InputError
from starlearn.learner import STARLearner
from starlearn.query.mixing import mixed
from starlearn.query.selection import top_n
from starlearn.settings import Acquisition

COLUMNS = ("base", "full", "entropy", "mutual_information", "n_tokens", "confidence")


def choose(place: Place, learner: STARLearner, pool: pa.Table, found: Round) -> list[Issued]:
    """Choose the batch of a round among the m items of a pool.

    Items are scored in chunks, each of which is kept as it is finished: after an interruption
    the scores of finished chunks are read instead of computed. Equal scores are ordered by a
    hash of item and seed, so the same pool gives the same batch in any order.

    Where scores of one item depend on the whole pool before they are mixed, or no model takes
    part, the learner's own `query` chooses in one go.

    Parameters
    ----------
    place : Place
    learner : STARLearner
    pool : pyarrow.Table
        Columns id and content, m rows.
    found : Round
        In state scoring; ``params`` says seed and chunk size.
    """
    acquisition = learner.acquisition or Acquisition()
    if _looks_at_all(acquisition):
        return _chosen_at_once(learner, pool, found)
    scores = _scores(place, learner, pool, found)
    t = max(len(getattr(learner, "rounds_", [])) - 1, 0)
    trained = hasattr(learner, "adapter_")
    weight = acquisition.base_weight(t) if trained else 1.0
    base, full = (scores[name].to_numpy() for name in ("base", "full"))
    values = mixed(base, full, weight, acquisition.normalise)
    ids = scores["id"].to_pylist()
    keys = np.array([_key(item, found.params["seed"]) for item in ids], dtype=np.uint64)
    picked = top_n(values, found.n, keys)
    write_table(
        place.round_scores(found.id),
        scores.append_column("mixed", pa.array(values)),
        {"weight of base": repr(weight), "measure": acquisition.measure},
    )
    failpoint("query_scores_written")
    answers = scores["answer"].to_pylist()
    contents = pool["content"]
    return [
        Issued(
            item=ids[row],
            content=contents[int(row)].as_py(),
            place=place_,
            score=float(values[row]),
            reason=(
                f"{acquisition.measure}: place {place_ + 1} of {len(ids)} (score "
                f"{values[row]:.4g}; base model {base[row]:.4g}"
                + (f" with weight {weight:g}, fine-tuned {full[row]:.4g}" if trained else "")
                + f"); the model says {answers[row]!r:.80}"
            ),
        )
        for place_, row in enumerate(picked.tolist())
    ]


def _looks_at_all(acquisition: Acquisition) -> bool:
    """Whether a batch is more than the top of one score an item."""
    return (
        acquisition.strategy != "star"
        or acquisition.reduce == "residual"
        or acquisition.diversity != "none"
        or acquisition.screen is not None
        or acquisition.sub_pool is not None
        or acquisition.near is not None
    )


def forget_chunks(place: Place, round_id: int) -> None:
    """Remove the chunks of a round whose batch is issued."""
    shutil.rmtree(place.chunks(round_id), ignore_errors=True)


def fields_of(table: pa.Table) -> list[dict[str, str]]:
    """Return the items of a table as dicts of fields."""
    return [json.loads(content) for content in table["content"].to_pylist()]


def _scores(place: Place, learner: STARLearner, pool: pa.Table, found: Round) -> pa.Table:
    size = int(found.params["chunk_size"])
    make_folder(place.scores)
    make_folder(place.chunks(found.id))
    parts = []
    for number, start in enumerate(range(0, pool.num_rows, size)):
        chunk = pool.slice(start, size)
        path = place.chunks(found.id) / f"chunk-{number:06d}.parquet"
        key = _chunk_key(chunk, found)
        part = _finished(path, key)
        if part is None:
            part = _computed(learner, chunk, f"items {start} to {start + chunk.num_rows - 1}")
            write_table(path, part, {"key": key})
            failpoint("query_chunk_written")
        parts.append(part.replace_schema_metadata(None))
    return pa.concat_tables(parts)


def _computed(learner: STARLearner, chunk: pa.Table, where: str) -> pa.Table:
    try:
        found = learner.uncertainty(fields_of(chunk))
    except InputError as error:
        counted = f" (Rows are counted among {where} of those not labelled.)"
        raise InputError(f"{error}{counted if 'row ' in str(error) else ''}") from error
    columns: dict[str, Any] = {"id": chunk["id"]}
    columns |= {name: pa.array(np.asarray(getattr(found, name))) for name in COLUMNS}
    return pa.table({**columns, "answer": [str(answer) for answer in found.answers]})


def _finished(path: Any, key: str) -> pa.Table | None:
    """Return a finished chunk; None when it is not there, damaged, or of another computation."""
    table = read_scores(path)
    if table is None:
        return None
    facts = table.schema.metadata or {}
    whole = table.column_names == ["id", *COLUMNS, "answer"]
    return table if whole and facts.get(b"key") == key.encode() else None


def _chunk_key(chunk: pa.Table, found: Round) -> str:
    digest = blake2b(json.dumps(found.params, sort_keys=True).encode(), digest_size=16)
    for item in chunk["id"].to_pylist():
        digest.update(item.encode())
    return digest.hexdigest()


def _key(item: str, seed: int) -> int:
    return int.from_bytes(blake2b(f"{seed} {item}".encode(), digest_size=8).digest(), "big")


def _chosen_at_once(learner: STARLearner, pool: pa.Table, found: Round) -> list[Issued]:
    query: Callable[..., Any] = learner.query
    positions, _, metrics = query(fields_of(pool), found.n, return_metrics=True)
    how = "drawn at random" if np.isnan(metrics).all() else "score"
    return [
        Issued(
            item=pool["id"][int(row)].as_py(),
            content=pool["content"][int(row)].as_py(),
            place=place,
            score=None if np.isnan(metrics[place]) else float(metrics[place]),
            reason=f"{how}: place {place + 1} of {pool.num_rows}"
            + ("" if np.isnan(metrics[place]) else f" ({metrics[place]:.4g})"),
        )
        for place, row in enumerate(positions.tolist())
    ]
