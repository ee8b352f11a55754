"""The key goes only to addresses that its user has confirmed, and a slow server stops nobody."""

import json
import shutil
import socket
import stat
from contextlib import ExitStack

import pytest
from typer.testing import CliRunner

pytest.importorskip("label_studio_sdk", reason="the client of Label Studio is not installed")

from fake_labelstudio import URL

from starlearn.campaign.campaign import Campaign
from starlearn.campaign.labelstudio import confirmed, sync
from starlearn.campaign.labelstudio.sync import link_of, pull, push
from starlearn.cli.app import app
from starlearn.errors import CampaignCorruptError, CampaignLockedError, InputError

THEIRS = "http://attacker.example"


@pytest.fixture
def received(campaign, fake):
    """Return a campaign whose folder came from somebody else, with their server in it."""
    push(campaign, URL)
    with campaign.store.transaction():
        campaign.store.set_meta(**{sync.META: json.dumps({"url": THEIRS, "project": 1})})
    fake.requests.clear()
    return campaign


@pytest.fixture
def terminal(monkeypatch):
    """Let commands see a terminal; the runner's own input has none."""
    monkeypatch.setattr("starlearn.cli.exchange_commands.is_terminal", lambda: True)


def run(*arguments, typed=None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)


# The address


@pytest.mark.parametrize("command", [push, pull])
def test_the_key_is_not_sent_to_an_address_that_only_the_folder_names(received, fake, command):
    with pytest.raises(InputError, match=rf"'{THEIRS}', which you have not.*--url {THEIRS}"):
        command(received)
    with pytest.raises(InputError, match="was not sent"):
        command(received, project=1)
    assert fake.requests == []
    command(received, THEIRS, project=1)
    assert fake.requests
    command(received)


def test_an_address_is_confirmed_once_for_all_campaigns(campaign, fake, make_campaign, quick):
    push(campaign, URL)
    campaign.close()
    shutil.copytree(campaign.folder, quick / "copy")
    with Campaign.open(quick / "copy") as copy:
        assert push(copy).n_same == 4
    file = confirmed.confirmed_file()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    content = file.read_text()
    other = make_campaign(name="other")
    other.query(2)
    push(other, f"{URL}/")
    assert file.read_text() == content


def test_another_machine_with_the_same_home_folder_asks_again(campaign, fake, monkeypatch):
    push(campaign, URL)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "another")
        with pytest.raises(InputError, match="have not confirmed on this machine"):
            push(campaign)
        push(campaign, URL)
    assert list(json.loads(confirmed.confirmed_file().read_bytes()).values()) == [[URL], [URL]]
    push(campaign)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"%s": 5}', b'{"%s": [5]}'])
def test_a_file_that_cannot_be_read_confirms_nothing_and_is_replaced(campaign, fake, content):
    file = confirmed.confirmed_file()
    file.parent.mkdir(parents=True)
    file.write_bytes(content.replace(b"%s", socket.gethostname().encode()))
    assert not confirmed.is_confirmed(URL)
    confirmed.remember(URL)
    assert confirmed.is_confirmed(URL)


def test_a_file_that_others_can_change_confirms_nothing(fake):
    confirmed.remember(URL)
    confirmed.confirmed_file().chmod(0o666)
    assert not confirmed.is_confirmed(URL)


def test_a_home_folder_that_cannot_be_written_stops_no_push(campaign, fake, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    assert push(campaign, URL).n_new == 4
    with pytest.raises(InputError, match="--url"):
        push(campaign)


@pytest.mark.parametrize(
    "link",
    [
        "{",
        '{"url": "http://x"}',
        '{"url": 5, "project": 1}',
        '{"url": "http://ann:secret@x", "project": 1}',
        '{"url": "file:///etc", "project": 1}',
        '{"url": "http://x\\u001b[2J", "project": 1}',
        '{"url": "http://x", "project": "../1"}',
    ],
)
def test_an_address_in_the_folder_that_is_none_is_damage(campaign, fake, link):
    with campaign.store.transaction():
        campaign.store.set_meta(**{sync.META: link})
    with pytest.raises(CampaignCorruptError, match="the setting 'labelstudio' cannot be read"):
        push(campaign)
    assert fake.requests == []


def test_letters_that_look_like_others_are_spelled_out(received):
    with received.store.transaction():
        link = {"url": "http://l\u0430bels.example", "project": 1}
        received.store.set_meta(**{sync.META: json.dumps(link)})
    with pytest.raises(InputError, match=r"'http://l\\u0430bels.example'"):
        pull(received)


def test_without_a_terminal_the_command_names_the_option(received, fake):
    for command in ("push", "pull"):
        done = run(command, received.folder)
        assert done.exit_code == 2
        assert f"starlearn {command} {received.folder} --url {THEIRS}" in done.output
    assert fake.requests == []


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_the_address_is_asked_for_once(received, fake):
    done = run("push", received.folder, typed="n\n")
    assert done.exit_code == 2
    assert f"The campaign names the server '{THEIRS}'." in done.output
    assert fake.requests == []
    assert run("push", received.folder, typed="\n").exit_code == 2  # no is the default
    done = run("push", received.folder, typed="y\n")
    assert done.exit_code == 0, done.output
    assert "Send the key there?" not in run("pull", received.folder, typed="").output


# The lock


def test_labelling_goes_on_while_a_server_is_slow(campaign, fake):
    answered = []

    def slow(request):
        with Campaign.open(campaign.folder) as other:  # as another process would
            item = campaign.batch()[len(answered) % 4]
            answered.append(other.label(item, "red", f"person {len(answered)}"))

    fake.instead = slow
    assert push(campaign, URL).n_new == 4
    assert len(answered) == len(fake.requests) > 3
    before = len(answered)
    pull(campaign)
    assert len(answered) > before


def test_two_pushes_at_once_send_no_task_twice(campaign, fake):
    refused = []

    def second(request):
        fake.instead = lambda request: None
        with Campaign.open(campaign.folder) as other, pytest.raises(CampaignLockedError) as caught:
            push(other, URL)
        refused.append(str(caught.value))

    fake.instead = second
    assert push(campaign, URL).n_new == len(fake.tasks) == 4
    assert "(push)" in refused[0]
    assert link_of(campaign).project in fake.projects


def test_a_push_goes_on_while_another_process_holds_the_campaign(campaign, fake):
    push(campaign, URL)
    fake.tasks.clear()
    with ExitStack() as stack:
        other = stack.enter_context(Campaign.open(campaign.folder))

        def held(request):
            fake.instead = lambda request: None
            stack.enter_context(other.holding("teach"))

        fake.instead = held
        assert push(campaign).n_new == 4
