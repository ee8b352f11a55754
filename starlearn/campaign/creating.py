"""Creation of a campaign: first the pool's snapshot, last the label store under its name."""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

from starlearn.campaign import learner_settings, rounds, snapshot
from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.items import field_names, item_id, unique_items
from starlearn.campaign.paths import CampaignPaths
from starlearn.campaign.publish import adapter_name, publish_learner
from starlearn.campaign.responses import RESOLUTIONS
from starlearn.campaign.store import Store, now
from starlearn.data.containers import as_items
from starlearn.data.pool import Pool
from starlearn.errors import InputError, StorageError
from starlearn.learner.estimator import STARLearner
from starlearn.storage.files import (
    explained,
    file_sha256,
    make_folder,
    storage_errors,
    sync,
    warn_about_folder,
)
from starlearn.version import __version__

LEFTOVERS = {
    ".lock",
    "pool.parquet",
    ".pool.parquet.new",
    ".labels.db.new",
    ".labels.db.new-journal",
}
"""Files that an interrupted creation may leave; the next one overwrites them."""


def create(
    paths: CampaignPaths,
    pool: Any,
    learner: STARLearner,
    extra_fields: Sequence[str],
    options: dict[str, Any],
) -> None:
    """Create a campaign in an empty folder; see :meth:`Campaign.create`."""
    settings = learner_settings.to_json(learner)
    items, source = _read_pool(pool)
    filled = learner_settings.parameters_of(settings)["task"].fill(items)
    found = unique_items(items, filled, extra_fields)
    if not found:
        raise InputError("The pool is empty. At least one item is needed.")
    learner_settings.require_distinct_choices(settings, pool=filled)
    first = _first_labels(learner)
    _require_empty(paths.folder)
    with paths.make_lock().held("init"):
        _require_empty(paths.folder)
        sha256 = snapshot.write_snapshot(paths.pool, found)
        failpoint("create_snapshot_written")
        facts = {
            **source,
            "snapshot": sha256,
            "n_rows": len(items),
            "n_items": len(found),
            "fields": field_names(items),
            "n_known": len(found.keys() & set(first)),
        }
        meta = {
            "campaign": uuid4().hex,
            "created": now(),
            "starlearn": __version__,
            "learner": settings,
            "pool": json.dumps(facts),
            "options": json.dumps(options),
            "n_first": str(len(first)),
            "first": json.dumps(first),
        }
        _write_store(paths, meta, learner)


def _write_store(paths: CampaignPaths, meta: dict[str, str], learner: STARLearner) -> None:
    # The label store is complete before it gets its name: `labels.db` is what makes a campaign.
    for left in (paths.unfinished, Path(f"{paths.unfinished}-journal")):
        left.unlink(missing_ok=True)
    shutil.rmtree(paths.adapters, ignore_errors=True)
    with closing(Store.create(paths.unfinished)) as store:
        name, seal = adapter_name(0, 1), None
        if hasattr(learner, "adapter_"):  # a trained learner's adapter is that of round 0
            seal = publish_learner(paths, learner, name, {"campaign": meta["campaign"]})
        with store.transaction():
            store.set_meta(**meta)
            if seal is not None:
                store.set_meta(base=learner.adapter_.base)
                rounds.add_first(store, name, seal, n_labels=len(learner.X_training))
    failpoint("create_store_written")
    with storage_errors(f"writing {paths.labels}"):
        os.rename(paths.unfinished, paths.labels)
        sync(paths.folder)
    failpoint("create_renamed")


def _read_pool(pool: Any) -> tuple[list[Any], dict[str, Any]]:
    if not isinstance(pool, str | os.PathLike):
        return as_items(pool, "pool"), {"source": None}
    path = Path(pool).expanduser()
    items = list(Pool(path))
    facts: dict[str, Any] = {"source": str(path.resolve())}
    if path.is_file():
        facts |= {"size": path.stat().st_size, "sha256": file_sha256(path)}
    return items, facts


def checked_options(resolution: str, per_item: int) -> dict[str, Any]:
    """Return a campaign's own settings; InputError when one cannot be used."""
    if resolution not in RESOLUTIONS:
        raise InputError(
            f"resolution must be one of {', '.join(map(repr, RESOLUTIONS))}; got {resolution!r}."
        )
    if isinstance(per_item, bool) or not isinstance(per_item, int) or per_item < 1:
        raise InputError(f"per_item must be a whole number of at least 1, got {per_item!r}.")
    return {"resolution": resolution, "per_item": per_item}


def _first_labels(learner: STARLearner) -> list[str]:
    """Return the ids of the items that the learner was trained on before the campaign."""
    if not hasattr(learner, "adapter_"):
        return []
    if not all(isinstance(label, str) for label in learner.y_training.tolist()):
        raise InputError(
            "The learner was trained with labels that are not text, but labels of a campaign are "
            "text. Fit it again: learner.fit(X, [str(label) for label in y])."
        )
    task = learner_settings.parameters_of(learner_settings.to_json(learner))["task"]
    return [item_id(fields) for fields in task.fill(learner.X_training.tolist())]


def _require_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file. Choose a new folder.")
    make_folder(folder)
    names = {path.name for path in folder.iterdir()}
    left = sorted(names - LEFTOVERS - ({"adapters"} if ".labels.db.new" in names else set()))
    if not os.access(folder, os.W_OK):
        raise StorageError(
            explained(PermissionError(13, "Permission denied", str(folder)), f"writing {folder}")
        )
    if "labels.db" in left:
        raise InputError(
            f"There is a campaign in {folder} already. Continue it: starlearn status {folder}, "
            "Campaign.open(folder); or choose a new folder."
        )
    if left:
        raise InputError(f"{folder} is not empty ({', '.join(left[:3])}). Choose a new folder.")
    os.chmod(folder, 0o700)
    warn_about_folder(folder)
