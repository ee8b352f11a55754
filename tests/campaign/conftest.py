"""Fixtures of the campaign's tests; what is imported lies in campaign_cases.py."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from campaign_cases import POOL, make_learner, quick_folder


@pytest.fixture
def quick() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def make_campaign(tiny_model: str, quick: Path) -> Iterator[Callable[..., Any]]:
    """Return a factory of campaigns on the tiny model; keywords change learner or campaign."""
    from starlearn.campaign.campaign import Campaign

    made = []

    def factory(pool: Any = POOL, name: str = "campaign", **changes: Any) -> Campaign:
        own = ("resolution", "per_item", "extra_fields")
        options = {k: changes.pop(k) for k in own if k in changes}
        learner = changes.pop("learner", None) or make_learner(tiny_model, **changes)
        made.append(Campaign.create(quick / name, pool, learner, **options))
        return made[-1]

    yield factory
    for campaign in made:
        campaign.close()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a Label Studio in memory, which receives every request of this process."""
    pytest.importorskip("label_studio_sdk", reason="the client of Label Studio is not installed")
    from fake_labelstudio import KEY, FakeLabelStudio

    from starlearn.campaign.labelstudio import transport

    made = FakeLabelStudio()
    monkeypatch.setattr(transport, "plain_transport", lambda url: made)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return made


@pytest.fixture
def campaign(make_campaign: Callable[..., Any]) -> Any:
    """Return a campaign with a batch of four open."""
    made = make_campaign()
    made.query(4)
    return made


@pytest.fixture
def batch(campaign: Any) -> Any:
    return campaign


@pytest.fixture
def free(make_campaign: Callable[..., Any]) -> Any:
    """Return a campaign with free responses and a batch of three open."""
    from page_cases import FREE

    made = make_campaign(task=FREE)
    made.query(3)
    return made


@pytest.fixture
def pushed(campaign: Any, fake: Any) -> tuple[Any, list[Any]]:
    """Return a campaign whose batch of four is in Label Studio, and the numbers of its tasks."""
    from fake_labelstudio import URL

    from starlearn.campaign.labelstudio.sync import push

    push(campaign, URL)
    return campaign, list(fake.tasks)
