"""What goes wrong between a campaign and Label Studio: nothing is lost, sent twice or believed."""

import sys
from contextlib import closing

import pytest
from typer.testing import CliRunner

pytest.importorskip("label_studio_sdk", reason="the client of Label Studio is not installed")

import httpx
from fake_labelstudio import KEY, URL

from starlearn.campaign import events
from starlearn.campaign.exchange import import_labels
from starlearn.campaign.labelstudio import client, sync, transport
from starlearn.campaign.labelstudio.sync import pull, push
from starlearn.cli.app import app
from starlearn.errors import InputError, MissingDependencyError, ServerError


def test_a_push_that_failed_half_way_is_completed_by_the_next(campaign, fake, monkeypatch):
    monkeypatch.setattr(sync, "PIECE_TASKS", 2)
    sent = []

    def second_fails(request):
        if request.url.path.endswith("/import"):
            sent.append(request)
            if len(sent) == 2:
                return httpx.Response(502, text="<html>bad gateway</html>")
        return None

    fake.instead = second_fails
    with pytest.raises(ServerError, match=r"502.*At least 2 of 4 tasks are in project 1"):
        push(campaign, URL)
    assert len(sent) == 2  # not repeated on its own: the first may have arrived
    done = push(campaign)
    assert (done.n_new, done.n_same) == (2, 2)
    assert len({task["data"]["id"] for task in fake.tasks.values()}) == len(fake.tasks) == 4


def test_tasks_that_arrived_although_the_answer_was_lost_are_not_sent_twice(campaign, fake):
    def lost(request):
        if request.url.path.endswith("/import"):
            fake.instead = lambda request: None
            fake.handle_request(request)
            raise httpx.ReadTimeout("timed out", request=request)

    fake.instead = lost
    with pytest.raises(ServerError, match="did not answer within 60 s"):
        push(campaign, URL)
    assert push(campaign).n_same == len(fake.tasks) == 4


def test_accepted_tasks_that_are_not_listed_are_reported(campaign, fake):
    def swallows(request):
        taken = request.url.path.endswith("/import")
        return httpx.Response(201, json={"import": 5}) if taken else None

    fake.instead = swallows
    with pytest.raises(ServerError, match="4 of them are not in project 1 yet"):
        push(campaign, URL)


def answers(status, **how):
    return lambda request: httpx.Response(status, **how)


def fails(kind):
    def answer(request):
        raise kind("[Errno 111] refused", request=request)

    return answer


@pytest.mark.parametrize(
    ("instead", "error", "says"),
    [
        (fails(httpx.ConnectError), ServerError, r"cannot be reached.*curl http://labels.example/"),
        (fails(httpx.ConnectTimeout), ServerError, "did not answer within 60 s"),
        (answers(401, json={"detail": "Invalid token."}), InputError, "not accept the key.*export"),
        (answers(403, json={"detail": "No."}), InputError, "has no permission for .*403: No"),
        (answers(404, json={"detail": "None."}), InputError, "cannot find .*--project NUMBER"),
        (answers(301, headers={"location": "https://x"}), InputError, "redirects to https://x"),
        (answers(500, text="oops"), ServerError, "refused .*500: oops"),
        (answers(200, text="<html>"), ServerError, "does not answer like Label Studio"),
        (answers(200, json=[]), ServerError, "cannot"),
        (answers(200, content=b"x", headers={"content-encoding": "br"}), ServerError, "compressed"),
    ],
)
def test_every_refusal_names_the_remedy_and_changes_nothing(pushed, fake, instead, error, says):
    campaign, tasks = pushed
    fake.annotate(tasks[0], "red")
    fake.instead = instead
    for command in (pull, push):
        with pytest.raises(error, match=says):
            command(campaign)
    assert events.events(campaign.store) == []
    fake.instead = lambda request: None
    assert pull(campaign).n_new == 1


def test_users_without_the_right_to_see_names_have_numbers(pushed, fake):
    campaign, tasks = pushed
    fake.annotate(tasks[0], "red", 2)
    fake.instead = lambda r: answers(403, json={})(r) if r.url.path == "/api/users/" else None
    assert "numbers of these users are known: user-2." in pull(campaign).notes[0]
    assert campaign.batch()[0].answers == {"user-2": "red"}


NOTE = '{"id": 1, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"%s}'
TASK = '{"id": 1, "data": {"id": "i", "campaign": "%s"%s}, "annotations": [%s]}'
HOSTILE_PARTS = {
    "deep": ', "result": ' + "[" * 500 + "]" * 500,
    "very deep": ', "result": ' + "[" * 200_000 + "]" * 200_000,
    "NaN": ', "lead_time": NaN',
    "infinity": ', "lead_time": Infinity',
    "huge": ', "lead_time": 1e999',
    "negative": ', "lead_time": -1',
    "many": ', "result": [' + ", ".join(["{}"] * 10_001) + "]",
    "text for a list": ', "result": "red"',
    "number for a text": ', "result": [{"from_name": "label", "value": {"choices": [1]}}]',
    "long": ', "result": [{"value": {"text": "' + "x" * 1_000_001 + '"}}]',
    "list for a name": ', "completed_by": ["ann"]',
    "text for yes": ', "was_cancelled": "no"',
    "no time": ', "updated_at": "yesterday"',
    "no zone": ', "updated_at": "2026-01-01T00:00:00"',
    "surrogate": ', "result": [{"value": {"text": "\\ud800"}}]',
    "data: deep": ', "text": ' + "[" * 500 + "]" * 500,
    "data: NaN": ', "text": NaN',
    "data: surrogate": ', "text": "\\ud800"',
}


def test_the_payload_of_the_next_test_is_read_without_its_hostile_part(campaign, quick):
    (quick / "export.json").write_text(f"[{TASK % (campaign.id, '', NOTE % '')}]")
    with pytest.raises(InputError, match="task 1, annotation 1: id 'i' was never issued"):
        import_labels(campaign, quick / "export.json")


@pytest.mark.parametrize("part", HOSTILE_PARTS)
@pytest.mark.parametrize("way", ["server", "file"])
def test_hostile_payloads_of_label_studio_are_refused(campaign, fake, quick, way, part):
    hostile = HOSTILE_PARTS[part]
    inside = (hostile, NOTE % "") if part.startswith("data: ") else ("", NOTE % hostile)
    task = TASK % (campaign.id, *inside)
    if way == "server":
        push(campaign, URL)
        page = f'{{"total": 1, "tasks": [{task}]}}'.encode()
        fake.instead = lambda r: answers(200, content=page)(r) if "tasks" in r.url.path else None
        with pytest.raises(ServerError, match=f"{URL} returned"):
            pull(campaign)
    else:
        file = quick / "export.json"
        file.write_text(f"[{task}]")
        with pytest.raises(InputError, match="is not a JSON export of Label Studio") as caught:
            import_labels(campaign, file)
        assert len(str(caught.value)) < 1000
    assert events.events(campaign.store) == []


def test_answers_of_any_size_are_cut_off(pushed, fake, monkeypatch):
    campaign, _ = pushed
    monkeypatch.setattr(transport, "LARGEST", 10_000)
    given = []

    class Endless(httpx.SyncByteStream):
        def __iter__(self):
            while True:
                given.append(1000)
                yield b"x" * 1000

    fake.instead = lambda request: httpx.Response(200, stream=Endless())
    with pytest.raises(ServerError, match=r"more than 10,000 bytes.*starlearn import"):
        pull(campaign)
    assert sum(given) == 11_000


# Address, key and client


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("labels.example", "--url must be the address"),
        ("ftp://labels.example", "--url must be the address"),
        ("http://", "--url must be the address"),
        ("http://x:99999", "--url must be the address"),
        ("http://x/?token=1", "--url must be the address"),
        ("http://ann:secret@labels.example", "must not hold a user or password"),
    ],
)
def test_addresses_that_cannot_be_used(campaign, fake, url, says):
    with pytest.raises(InputError, match=says) as caught:
        push(campaign, url)
    assert "secret" not in str(caught.value)
    assert fake.requests == []


def test_unknown_server_and_project_are_required(campaign, fake, monkeypatch):
    with pytest.raises(InputError, match="not both"):
        push(campaign, URL, project=1, new=True)
    for command, says in ((push, "address of Label Studio"), (pull, "project to pull from")):
        with pytest.raises(InputError, match=says):
            command(campaign)
    for key in ("", "two\nlines", "é"):
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", key)
        with pytest.raises(InputError, match="LABEL_STUDIO_API_KEY"):
            push(campaign, URL)
    assert fake.requests == []


def test_without_the_client_the_error_names_the_extra(campaign, fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "label_studio_sdk", None)
    with pytest.raises(MissingDependencyError, match=r"starlearn\[labelstudio\].*export FOLDER"):
        push(campaign, URL)


def test_the_key_is_neither_printed_nor_kept(campaign, fake, quick):
    def echo(request):
        body = {"detail": f"no {request.headers['authorization']}, nor Bearer abc.def"}
        return httpx.Response(500, json=body)

    folder = str(campaign.folder)
    run = CliRunner().invoke(app, ["push", folder, "--url", URL])
    assert run.exit_code == 0, run.output
    assert f"4 tasks sent: {URL}/projects/1" in run.output
    fake.instead = echo
    for command in ("push", "pull"):
        run = CliRunner().invoke(app, [command, folder])
        assert run.exit_code == 6
        assert "no Token *** nor Bearer ***" in run.output
        assert KEY not in run.output
    kept = [path for path in campaign.folder.rglob("*") if path.is_file()]
    assert len(kept) > 2
    assert not any(KEY.encode() in path.read_bytes() for path in kept)


def test_the_client_and_its_limits(fake):
    with closing(client.LabelStudioServer(URL, KEY)) as asked:
        assert asked._client._client_wrapper.get_timeout() == client.SECONDS
        assert asked.names() == {1: "ann@example.org", 2: "bob@example.org"}
