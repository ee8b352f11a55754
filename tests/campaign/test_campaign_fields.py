"""Fields of a pool: its own ids, its order, and fields that only exports contain."""

import csv
import io
import json
from datetime import date

import pyarrow.parquet as pq
import pytest
from page_cases import visitors

from starlearn.campaign.campaign import Campaign
from starlearn.campaign.exchange import export_batch, import_labels
from starlearn.campaign.items import field_names, item_id, unique_items
from starlearn.campaign.snapshot import read_snapshot, write_table
from starlearn.storage.files import file_sha256
from starlearn.tasks import ChoiceTask

TWO_FIELDS = ChoiceTask("{text} {author} Answer :", choices=["red", "green"])


def row(number):
    """Return an item whose fields are in no alphabetical order."""
    return {
        "id": number,
        "topic": f"topic {number}",
        "text": f"the sky is {number}",
        "seen": None,
        "author": "ann",
        "tags": ["a", "b"],
    }


@pytest.fixture
def campaign(make_campaign):
    pool = [row(number) for number in range(4)]
    made = make_campaign(pool, task=TWO_FIELDS, extra_fields=["topic"])
    made.query(2)
    return made


def csv_rows(file):
    return list(csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig"))))


def test_an_export_keeps_the_pools_fields_in_their_order(campaign, quick):
    export_batch(campaign, quick / "x.csv")
    rows = csv_rows(quick / "x.csv")
    own = ["field:id", "topic", "text", "seen", "author", "tags"]
    assert list(rows[0]) == ["id", *own, "label", "annotator", "why", "campaign"]
    for found, item in zip(rows, campaign.batch(), strict=True):
        number = int(found["field:id"])
        assert found["text"] == item.fields["text"] == f"the sky is {number}"
        assert (found["topic"], found["seen"]) == (f"topic {number}", "")
        assert found["tags"] == '["a", "b"]'
    export_batch(campaign, quick / "x.jsonl")
    lines = [json.loads(line) for line in (quick / "x.jsonl").read_text().splitlines()]
    assert [line["field:id"] for line in lines] == [int(r["field:id"]) for r in rows]
    assert (lines[0]["tags"], lines[0]["seen"]) == (["a", "b"], None)
    for file in ("x.csv", "x.jsonl"):
        assert import_labels(campaign, quick / file).notes == []


def test_fields_are_shown_in_the_pools_order_the_prompts_first(campaign):
    item = campaign.batch()[0]
    assert list(item.fields) == ["text", "author", "topic"]
    (visitor,) = visitors(campaign, "ann")
    page = visitor.get().text
    places = [page.index(f"\n{name}\n") for name in ("text", "author", "topic")]
    assert places == sorted(places)


def test_an_exported_file_can_be_the_next_pool(campaign, make_campaign, quick):
    export_batch(campaign, quick / "x.csv")
    rows = csv_rows(quick / "x.csv")
    again = make_campaign(quick / "x.csv", name="again", task=TWO_FIELDS)
    again.query(2)
    export_batch(again, quick / "y.csv")
    found = {r["field:id"]: r["field:field:id"] for r in csv_rows(quick / "y.csv")}
    assert found == {r["id"]: r["field:id"] for r in rows}


def test_a_campaign_of_an_earlier_version_exports_what_it_has(campaign, quick):
    facts = campaign.pool_facts
    table = read_snapshot(campaign.paths.pool, facts["snapshot"])
    write_table(campaign.paths.pool, table.drop_columns(["rest"]))
    facts["snapshot"] = file_sha256(campaign.paths.pool)
    del facts["fields"]
    with campaign.store.transaction():
        campaign.store.set_meta(pool=json.dumps(facts))
    assert "rest" not in pq.read_schema(campaign.paths.pool).names
    with Campaign.open(campaign.folder) as again:
        assert again.snapshot().num_rows == 4
        export_batch(again, quick / "x.csv")
        header = ["id", "text", "author", "topic", "label", "annotator", "why", "campaign"]
        assert list(csv_rows(quick / "x.csv")[0]) == header
        assert import_labels(again, quick / "x.csv").notes == []


def test_values_of_any_type_are_kept_as_json_or_text():
    loop = []
    loop.append(loop)
    items = [
        {"text": "a", "day": date(2026, 1, 2), 7: "number", "gap": float("nan")},
        {"text": "b", "loop": loop},
        {"text": "c", "odd": "\ud800"},
        "d",
    ]
    filled = [{"text": text} for text in "abcd"]
    rest = [json.loads(item.rest) for item in unique_items(items, filled).values()]
    assert rest[0] == {"day": "2026-01-02", "7": "number", "gap": None}
    assert rest[1:] == [{"loop": "[[...]]"}, {"odd": "\ufffd"}, {}]
    assert field_names(items) == ["text", "day", "7", "gap", "loop", "odd"]


def test_the_order_of_fields_does_not_change_an_item():
    assert item_id({"a": "1", "b": "2"}) == item_id({"b": "2", "a": "1"})
    rows = [{"a": "1", "b": "2", "x": "first"}, {"x": "second", "b": "2", "a": "1"}]
    (item,) = unique_items(rows, [{"a": "1", "b": "2"}] * 2).values()
    assert (item.content, item.count, json.loads(item.rest)) == (
        '{"a":"1","b":"2"}',
        2,
        {"x": "first"},
    )
