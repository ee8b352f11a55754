"""A learner on a hub: what goes there, what never goes there, and what a refusal says."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_hub import FakeHub, running_hub

from starlearn.errors import InputError, ServerError
from starlearn.learner.estimator import STARLearner
from starlearn.settings import Acquisition
from starlearn.tasks import ChoiceTask, GenerationTask

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

ITEMS = ["the sky is", "grass is", "the rose is very", "a big sea is"]
LABELS = ["blue", "green", "red", "blue"]
POOL = ["night sky", "very small leaf", "moon of the night"]
PROMPT = "{text} Answer :"


@pytest.fixture
def learner(make_learner: Callable[..., STARLearner]) -> STARLearner:
    fitted = make_learner(task=ChoiceTask(PROMPT, choices=["red", "green", "blue"]))
    fitted.fit(ITEMS, LABELS)
    fitted.query(POOL, 1)
    return fitted.teach([{"text": "night sky"}], ["blue"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    with running_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield running


def metadata(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return found


def test_no_text_of_pool_or_labels_is_uploaded(
    learner: STARLearner, hub: FakeHub, tiny_model: str
) -> None:
    url = learner.push_to_hub("me/mine", token="hf_secret")
    assert url == f"{hub.url}/me/mine/commit/{'b' * 40}"
    assert hub.visibility == "private"
    assert set(hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    sent = b"\n".join([*hub.files.values(), *hub.bodies]).decode(errors="replace")
    texts = [*ITEMS, *POOL, *LABELS, PROMPT, "Answer", "hf_secret"]
    assert str(Path(tiny_model).parent) not in sent
    # Whole words: "red" is a part of "required".
    assert [text for text in texts if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", sent)] == []
    assert hub.tokens == {"Bearer hf_secret"}


def test_an_upload_without_labels_leaves_none_of_an_earlier_one(
    learner: STARLearner, hub: FakeHub
) -> None:
    learner.push_to_hub("me/mine", include=["labelled"])
    assert {"labelled.jsonl", "starlearn.json", "MANIFEST.json"} <= set(hub.files)
    hub.files["notes.txt"] = b"somebody's own"
    learner.push_to_hub("me/mine", include=["labelled"])
    assert "labelled.jsonl" in hub.files
    learner.push_to_hub("me/mine")
    adapter = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert set(hub.files) == {*adapter, "notes.txt"}


def test_the_folder_is_what_goes_up_and_peft_opens_it(
    learner: STARLearner, hub: FakeHub, tmp_path: Path
) -> None:
    learner.write_hub_folder(tmp_path / "dry")
    assert hub.paths == []
    learner.push_to_hub("me/mine")
    written = {file.name: file.read_bytes() for file in (tmp_path / "dry").iterdir()}
    assert written == hub.files
    config = json.loads(written["adapter_config.json"])
    assert config["base_model_name_or_path"] == Path(learner.model).name


def test_the_card_tells_counts_settings_and_the_curve(learner: STARLearner, tmp_path: Path) -> None:
    learner.write_hub_folder(tmp_path / "dry", license="apache-2.0", base_model="them/base")
    card = (tmp_path / "dry" / "README.md").read_text()
    assert metadata(card) == {
        "base_model": "them/base",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["starlearn", "active-learning", "lora", "qlora"],
    }
    assert "5 labelled items. 3 classes, 3 of them labelled; labels by class: 3, 1, 1." in card
    assert "| adapter: r | 4 |" in card
    assert "| quantization | nf4 |" in card
    losses = [f"{record['train_loss']:.4f}" for record in learner.rounds_]
    assert f"| 0 | 4 | 4 | {losses[0]} |" in card
    assert f"| 1 | 5 | 4 | {losses[1]} |" in card
    assert f"{learner.rounds_[0]['query']['mean_full']:.3g}" in card
    assert "transformers 5" in card
    config = json.loads((tmp_path / "dry" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "them/base"


def test_the_card_says_how_items_were_chosen(learner: STARLearner, tmp_path: Path) -> None:
    def chosen(name: str) -> str:
        learner.write_hub_folder(tmp_path / name)
        head = (tmp_path / name / "README.md").read_text().partition("labels. ")[2]
        return head.partition("\n")[0]

    passes = Acquisition().n_passes
    learner.set_params(acquisition=Acquisition(n_passes=passes))
    told = f"Items were chosen by the model's mutual information over {passes} passes."
    assert chosen("default") == told
    learner.set_params(acquisition__measure="entropy", acquisition__schedule="published")
    assert chosen("uncertainty").endswith(", mixed with the base model's (weight published).")
    learner.set_params(acquisition__strategy="random")
    assert chosen("random") == "Items were drawn at random."
    learner.fit(ITEMS, LABELS)
    assert chosen("fit") == "No item was chosen by the model."


def test_without_a_hub_id_the_metadata_names_no_base(learner: STARLearner, tmp_path: Path) -> None:
    learner.write_hub_folder(tmp_path / "dry")
    assert "base_model" not in metadata((tmp_path / "dry" / "README.md").read_text())


@pytest.mark.parametrize(
    ("include", "shown", "hidden"),
    [
        (["prompt"], [PROMPT], ["green", "grass"]),
        (["choices"], ["green"], [PROMPT, "grass"]),
        ("prompt", [PROMPT], ["green", "grass"]),
    ],
)
def test_texts_go_along_when_they_are_named(
    learner: STARLearner, tmp_path: Path, include: Any, shown: list[str], hidden: list[str]
) -> None:
    learner.write_hub_folder(tmp_path / "dry", include=include)
    everything = "".join(file.read_text(errors="replace") for file in (tmp_path / "dry").iterdir())
    assert all(text in everything for text in shown)
    assert not any(text in everything for text in hidden)


def test_with_its_labels_a_learner_comes_back(learner: STARLearner, tmp_path: Path) -> None:
    learner.write_hub_folder(tmp_path / "dry", include=["labelled"])
    assert str(Path(learner.model).parent) not in (tmp_path / "dry" / "starlearn.json").read_text()
    again = STARLearner.load(tmp_path / "dry", model=learner.model)
    assert again.X_training.tolist() == learner.X_training.tolist()
    assert again.predict(POOL).tolist() == learner.predict(POOL).tolist()


def test_free_form_answers_are_not_told(
    make_learner: Callable[..., STARLearner], tmp_path: Path
) -> None:
    learner = make_learner(task=GenerationTask(PROMPT, 3, answer_pattern="is (blue)"))
    learner.fit(["the sky"], ["it is blue"]).write_hub_folder(tmp_path / "dry")
    card = (tmp_path / "dry" / "README.md").read_text()
    assert "The answers are free text." in card
    assert "blue" not in card
    assert "the sky" not in card


@pytest.mark.parametrize("private", [True, False])
def test_a_public_repository_gets_nothing_unless_told(
    learner: STARLearner, hub: FakeHub, private: bool
) -> None:
    hub.visibility = "public"
    if private:
        with pytest.raises(InputError, match="is public"):
            learner.push_to_hub("me/mine")
        assert hub.files == {}
    else:
        learner.push_to_hub("me/mine", private=False)
        assert "README.md" in hub.files


def test_refusals_are_our_own_errors(
    learner: STARLearner, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with pytest.raises(InputError, match="not a valid repository name"):
        learner.push_to_hub("me//mine")
    with pytest.raises(InputError, match="include may contain"):
        learner.push_to_hub("me/mine", include=["pool"])
    hub.refuses = True
    with pytest.raises(ServerError, match="hf auth login"):
        learner.push_to_hub("me/mine")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ServerError, match=r"The upload of .* failed"):
        learner.push_to_hub("me/mine")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ServerError, match="HF_HUB_OFFLINE"):
        learner.push_to_hub("me/mine")
    assert hub.files == {}
