"""Words that the model's tokenizer does not know, and the built-in model on one's own texts."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from starlearn.campaign.campaign import Campaign
from starlearn.cli.app import app
from starlearn.embedded.location import N_WORDS, model_folder
from starlearn.errors import InputError
from starlearn.learner.estimator import STARLearner
from starlearn.settings import Acquisition
from starlearn.tasks import ChoiceTask

STRANGE = ["my parcel has not arrived yet", "please cancel the second invoice"] * 8
UNKNOWN = r"of the tokens of the texts are unknown to the model's tokenizer"
TOY = r"The built-in model is a toy that knows 85 words\..*--model"


@pytest.fixture
def toy() -> STARLearner:
    task = ChoiceTask("{text}", choices=["Ann", "Bob"])
    acquisition = Acquisition(n_passes=1, measure="entropy", chunk_size=4)
    return STARLearner(task=task, acquisition=acquisition, random_state=0, verbose=False)


def test_the_hint_names_the_size_of_the_vocabulary() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    assert len(tokenizer) - len(tokenizer.all_special_tokens) == N_WORDS


def test_a_query_warns_once_of_a_pool_of_unknown_words(toy: STARLearner) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        toy.query(STRANGE, 2)
    texts = [str(warning.message) for warning in found if "unknown to" in str(warning.message)]
    assert len(texts) == 1
    assert "toy that knows 85 words" in texts[0]


def test_fit_and_predict_warn_too(
    make_learner: Callable[..., Any], labelled: tuple[list[str], list[str]]
) -> None:
    learner = make_learner()
    with pytest.warns(UserWarning, match=UNKNOWN):
        learner.fit(STRANGE[:2], ["red", "blue"])
    with pytest.warns(UserWarning, match=f"{UNKNOWN}.*Use a model for this language"):
        learner.predict(STRANGE)


def test_known_words_with_a_few_unknown_ones_are_no_reason(
    make_learner: Callable[..., Any], pool: list[str]
) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        make_learner().query([*pool, "the parcel is"], 2)
    assert not [warning for warning in found if "unknown to" in str(warning.message)]


def test_choices_that_the_built_in_model_does_not_know_lead_to_another_model() -> None:
    learner = STARLearner(task=ChoiceTask("{text}", choices=["billing", "shipping"]))
    with pytest.raises(InputError, match=TOY):
        learner.query(STRANGE, 2)


def test_a_campaign_on_unknown_words_says_so_when_it_is_created(
    toy: STARLearner, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=f"{UNKNOWN}.*{TOY}"):
        Campaign.create(tmp_path / "campaign", STRANGE, toy).close()


def test_init_without_a_model_says_so(tmp_path: Path) -> None:
    pool = tmp_path / "pool.csv"
    pool.write_text("text\n" + "\n".join(STRANGE) + "\n")

    def init(name: str, choices: str) -> Any:
        options = ["--pool", str(pool), "--prompt", "{text}", "--choices", choices]
        return CliRunner().invoke(app, ["init", str(tmp_path / name), *options])

    created, refused = init("campaign", "Ann,Bob"), init("other", "billing,shipping")
    assert (created.exit_code, refused.exit_code != 0) == (0, True)
    for ran in (created, refused):
        assert "toy that knows 85 words" in " ".join(ran.output.split())
