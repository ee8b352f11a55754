"""Settings of a campaign on the command line: answers, chat, and changes for the next round."""

import json
import shutil

import pytest
from campaign_cases import POOL
from page_cases import MANY
from test_campaign_commands import done, refused

from starlearn.campaign.campaign import Campaign
from starlearn.errors import InputError


@pytest.fixture
def pool(quick):
    file = quick / "pool.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in POOL))
    return file


def started(quick, pool, *options):
    folder = quick / "campaign"
    output = done("init", folder, "--pool", pool, "--prompt", "{text}", *options)
    return folder, output


def test_a_choice_may_have_commas(quick, pool):
    given = ("--choice", "yes, of course", "--choice", "no")
    folder, output = started(quick, pool, *given)
    assert "Choices: yes, of course | no\n" in output
    with Campaign.open(folder) as campaign:
        assert campaign.choices == ["yes, of course", "no"]
    assert "not both" in refused(
        "init", quick / "b", "--pool", pool, "--prompt", "{text}", "--choices", "a,b", *given
    )


def test_init_and_status_show_model_prompt_and_answers(quick, pool, tiny_model):
    folder, output = started(
        quick, pool, "--model", tiny_model, "--choices", ",".join([*MANY, "red", "green"])
    )
    shown = f'Model: {tiny_model}\nPrompt: "{{text}}"\nChoices: red a | red b | red c | '
    assert shown in output
    assert "blue d and 2 more\n" in output
    assert shown in done("status", folder)


def test_a_chat_prompt_and_its_system_message_are_shown(quick, pool, tiny_model):
    chatty = quick / "chatty"
    shutil.copytree(tiny_model, chatty)
    settings = json.loads((chatty / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for turn in messages %}{{ turn['content'] }} {% endfor %}"
    (chatty / "tokenizer_config.json").write_text(json.dumps(settings))
    given = ("--model", chatty, "--choices", "red,green,blue", "--system", "a big sea")
    assert "needs chat=True" in refused(
        "init", quick / "b", "--pool", pool, "--prompt", "{text}", *given
    )
    folder, output = started(quick, pool, *given, "--chat")
    shown = 'Chat prompt: "{text}"\nSystem message: "a big sea"\n'
    assert shown in output
    assert shown in done("status", folder)
    assert "Round 1: 2 items" in done("query", folder, "-n", 2)


def test_settings_change_for_the_next_round_and_are_recorded(make_campaign):
    campaign = make_campaign()
    folder = campaign.folder
    campaign.close()
    output = done("set", folder, "training.learning_rate=3e-4", "training.max_steps=null")
    assert "training.learning_rate: 0.005 -> 0.0003\n" in output
    assert "training.max_steps: 2 -> None\n" in output
    assert "in use already" in done("set", folder, "training.learning_rate=3e-4")
    assert "acquisition.diversity: none -> k-centre\n" in done(
        "set", folder, "acquisition.diversity=k-centre"
    )
    with Campaign.open(folder) as campaign:
        campaign.query(1)
        campaign.set_params(training__epochs=2)
        learner = campaign.learner()
        assert (learner.training.learning_rate, learner.training.max_steps) == (3e-4, None)
        assert learner.acquisition.diversity == "k-centre"
        changes = [(c.setting, c.before, c.after, c.round) for c in campaign.changes()]
    assert changes == [
        ("training.learning_rate", 5e-3, 3e-4, 0),
        ("training.max_steps", 2, None, 0),
        ("acquisition.diversity", "none", "k-centre", 0),
        ("training.epochs", 3, 2, 1),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("training.learning_rate", "training.learning_rate=3e-4"),
        ("=3", "training.learning_rate=3e-4"),
        ("learning_rate=1", r"Use Training(learning_rate=...)"),
        ("training.epochs=0", "[1, inf)"),
        ("training.epochs=many", "[1, inf)"),
        ("training=3", "training"),
        ("task.prompt=x", "cannot change"),
        ("model=x", "cannot change"),
    ],
)
def test_settings_that_cannot_be_set_change_nothing(make_campaign, change, reason):
    campaign = make_campaign()
    before = campaign.meta
    campaign.close()
    assert reason in refused("set", campaign.folder, "adapter.r=3", change)
    with Campaign.open(campaign.folder) as again:
        assert again.meta == before


def test_a_mistyped_choice_is_taken_back_while_no_label_uses_it(make_campaign):
    campaign = make_campaign()
    folder = campaign.folder
    assert "now 4 choices:\n  red\n  green\n  blue\n  pruple\n" in done(
        "add-choice", folder, "pruple"
    )
    item = campaign.query(2)[0]
    campaign.label(item, "pruple")
    campaign.close()
    assert "is the answer to 1 items" in refused("remove-choice", folder, "pruple")
    with Campaign.open(folder) as campaign:
        campaign.label(item, "red")
    assert "now 3 choices:\n  red\n  green\n  blue\n" in done("remove-choice", folder, "pruple")
    assert "not among the choices" in refused("remove-choice", folder, "pruple")
    with Campaign.open(folder) as campaign:
        campaign.teach(partial=True)
        assert [change.after for change in campaign.changes()] == [
            ["red", "green", "blue", "pruple"],
            ["red", "green", "blue"],
        ]
        campaign.remove_choice("green")
        with pytest.raises(InputError, match="two"):
            campaign.remove_choice("blue")
        assert len(campaign.query(1)) == 1  # with the adapter that knows one choice more
