"""starlearn: pick the prompts worth labelling, fine-tune in 4 bits, repeat.

Public names only. They are imported when first used, so that ``import starlearn`` is cheap.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from starlearn.version import __version__

if TYPE_CHECKING:
    from starlearn.campaign.campaign import Campaign
    from starlearn.data.pool import Pool
    from starlearn.distributed.cluster import RayEngine
    from starlearn.distributed.pool_files import score_pool
    from starlearn.learner.estimator import STARLearner
    from starlearn.progress import Progress
    from starlearn.query.budget import Budget
    from starlearn.settings import PUBLISHED, Acquisition, LoRA, Training
    from starlearn.tasks import ChoiceTask, GenerationTask

__all__ = [
    "PUBLISHED",
    "Acquisition",
    "Budget",
    "Campaign",
    "ChoiceTask",
    "GenerationTask",
    "LoRA",
    "Pool",
    "Progress",
    "RayEngine",
    "STARLearner",
    "Training",
    "__version__",
    "score_pool",
]

_HOME = {
    "STARLearner": "starlearn.modal",  # also tells modAL that STARLearner is one of its learners
    "LoRA": "starlearn.settings",
    "PUBLISHED": "starlearn.settings",
    "Acquisition": "starlearn.settings",
    "Training": "starlearn.settings",
    "Pool": "starlearn.data.pool",
    "Progress": "starlearn.progress",
    "Budget": "starlearn.query.budget",
    "Campaign": "starlearn.campaign.campaign",
    "RayEngine": "starlearn.distributed.cluster",
    "score_pool": "starlearn.distributed.pool_files",
    "ChoiceTask": "starlearn.tasks",
    "GenerationTask": "starlearn.tasks",
}


logging.getLogger("starlearn").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'starlearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
