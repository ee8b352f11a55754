"""The tasks of a study: what a seed draws, how labels are spelled, and what is refused."""

import json

import pytest

from starlearn.errors import InputError
from starlearn.evaluate import study_tasks
from starlearn.evaluate.simulate import content_id
from starlearn.evaluate.study_file import StudyTask
from starlearn.evaluate.study_tasks import data_digest, load_task
from starlearn.tasks import ChoiceTask, GenerationTask


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    study_tasks._files.cache_clear()
    study_tasks._benchmark.cache_clear()


def write(folder, **parts):
    for name, rows in parts.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    train = [{"text": f"item {i}", "label": f"card_{'abc'[i % 3]}"} for i in range(39)]
    return write(tmp_path, train=train[:30], test=train[30:])


def test_a_seed_draws_rows_and_keeps_their_order(folder):
    task = StudyTask(name="t", source="files", folder=folder, n_items=10, n_test=4)
    one, again, other = (load_task(task, seed) for seed in (0, 0, 1))
    assert one.digest == again.digest != other.digest
    assert one.items != other.items
    assert (len(one.items), len(one.test_items)) == (10, 4)
    places = [int(item.split()[1]) for item in one.items]
    assert places == sorted(places)
    assert one.labels == [f"card_{'abc'[i % 3]}" for i in places]
    assert load_task(StudyTask(name="t", source="files", folder=folder, n_items=99), 0).items[
        29
    ] == ("item 29")


def test_labels_may_be_written_as_words(folder):
    task = StudyTask(name="t", source="files", folder=folder, words=True, prompt="{text}:")
    found = load_task(task, 0)
    assert isinstance(found.task, ChoiceTask)
    assert found.task.choices == ["card a", "card b", "card c"]
    assert found.labels[:2] == ["card a", "card b"]
    assert data_digest(task) != data_digest(task.model_copy(update={"words": False}))


def test_choices_are_those_of_the_file_whatever_is_drawn(folder):
    task = StudyTask(name="t", source="files", folder=folder, n_items=1)
    assert load_task(task, 0).task.choices == ["card_a", "card_b", "card_c"]
    assert data_digest(task) == data_digest(task.model_copy(update={"n_items": 2}))


def test_free_form_answers(folder):
    found = load_task(StudyTask(name="t", source="files", folder=folder, max_new_tokens=5), 0)
    assert isinstance(found.task, GenerationTask)
    assert found.task.max_new_tokens == 5


@pytest.mark.parametrize("bare", ["train", "test"])
def test_labels_in_which_the_pattern_finds_no_answer_are_refused_with_their_file(tmp_path, bare):
    files = {
        name: [
            {"text": f"{name} {i}", "label": f"{i}" if name == bare else f"#### {i}"} for i in "12"
        ]
        for name in ("train", "test")
    }
    free = {"max_new_tokens": 5, "answer_pattern": r"#### (\d+)"}
    task = StudyTask(name="t", source="files", folder=write(tmp_path, **files), **free)
    with pytest.raises(InputError, match=rf"{bare}.jsonl: .* no answer in 2 of 2 labels"):
        load_task(task, 0)


def test_labels_that_nobody_could_buy_are_refused(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    write(tmp_path, train=rows, test=[{"text": "c", "label": "z"}])
    with pytest.raises(InputError, match=r"labels that train.jsonl lacks: 'z'"):
        load_task(StudyTask(name="t", source="files", folder=str(tmp_path)), 0)


def test_benchmarks_from_a_folder(tmp_path):
    rows = [
        {"question": f"How many is {i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"}
        for i in range(9)
    ]
    write(tmp_path, train=rows[:6], test=rows[6:])
    task = StudyTask(
        name="t",
        source="benchmark",
        dataset="gsm8k",
        folder=str(tmp_path),
        n_test=2,
        max_new_tokens=24,
    )
    found = load_task(task, 0)
    assert (len(found.items), len(found.test_items)) == (6, 2)
    assert found.task.max_new_tokens == 24
    assert found.task.find(found.labels[0]) == "1"


def test_files_whose_test_items_are_all_in_the_pool_are_refused(tmp_path):
    rows = [{"question": f"How many is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(6)]
    write(tmp_path, train=rows, test=rows[::-1])
    task = StudyTask(name="t", source="benchmark", dataset="gsm8k", folder=str(tmp_path), n_test=2)
    with pytest.raises(InputError, match="every test item is also in the pool"):
        load_task(task, 0)


def test_test_items_of_a_file_that_are_also_in_the_pool_are_known(tmp_path):
    rows = [{"text": f"{name} is", "label": name[0]} for name in ("apple", "banana", "cherry")]
    write(
        tmp_path, train=rows, test=[{"text": "Apple is", "label": "a"}, {"text": "x", "label": "b"}]
    )
    found = load_task(StudyTask(name="t", source="files", folder=str(tmp_path)), 0)
    assert found.leaked == {content_id("Apple is")}
    assert found.leaks == "1 of 2 test items (50.0%) are also in the pool"


def test_test_rows_that_leak_are_known_whatever_is_drawn(tmp_path):
    def rows(*numbers):
        options = "\n".join(f"Answer{x}: {x * 3}" for x in "ABCD")
        return [{"question": f"Which {i}?\n{options}", "answer": "A"} for i in numbers]

    write(tmp_path, train=rows(*range(8)), test=rows(20, 3, 21, 5))
    task = StudyTask(
        name="t", source="benchmark", dataset="openbookqa", folder=str(tmp_path), n_test=3
    )
    found = load_task(task, 0)
    leaked = [item for item in found.test_items if content_id(item) in found.leaked]
    assert len(found.leaked) == 2
    assert {item["question"].split("?")[0] for item in leaked} <= {"Which 3", "Which 5"}
    assert 1 <= len(leaked) <= 2


def test_embedded_pools_have_skills_and_depend_on_the_seed():
    task = StudyTask(name="t", source="embedded", pool="steps", n_items=20, n_test=5)
    one, other = load_task(task, 3), load_task(task, 4)
    assert one.items != other.items
    assert len(one.skills) == 20
    assert isinstance(one.task, GenerationTask)
    assert one.digest == load_task(task, 3).digest != other.digest


def test_a_task_can_use_the_models_chat_template(folder):
    task = StudyTask(name="t", source="files", folder=folder, chat=True, system="Be brief.")
    found = load_task(task, 0)
    assert (found.task.chat, found.task.system) == (True, "Be brief.")
    assert load_task(StudyTask(name="t", source="files", folder=folder), 0).task.chat is False
    with pytest.raises(InputError, match="needs chat=True"):
        load_task(StudyTask(name="t", source="files", folder=folder, system="Be brief."), 0)
