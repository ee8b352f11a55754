"""The grammar of the built-in tasks: each skill is a function that draws a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from numpy.random import Generator

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eva", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo")
CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Paris", "Delhi")
COLOURS = ("red", "blue", "green", "white")
OBJECTS = ("box", "cup", "key", "hat")
GOODS = ("coins", "nuts", "books")
LARGEST_NUMBER = 20
NUMBERS = tuple(str(number) for number in range(LARGEST_NUMBER + 1))
SIGNS = (".", "?", "+", "-", "=", ":")
FACT_WORDS = ("has", "is", "in", "then", "finds", "loses", "costs", "answer", "say")
QUESTION_WORDS = ("who", "what", "where", "how", "many", "most", "first", "after", "dearest")
NEW_FACT_WORDS = ("doubles", "again", "undoes")
NEW_QUESTION_WORDS = ("fewest", "last", "before", "middle", "with", "alone", "cheapest", "happy")
NEW_WORDS = (*NEW_FACT_WORDS, *NEW_QUESTION_WORDS)
"""Words that pre-training shows only in texts to copy, in no question and no fact.

`last` and `before` are used together. No skill uses `with`, `alone` and `again`.
"""
WORDS = (
    *(*NAMES, *CITIES, *COLOURS, *OBJECTS, *GOODS, *NUMBERS),
    *(*SIGNS, *FACT_WORDS, *QUESTION_WORDS, *NEW_WORDS),
)
"""The whole vocabulary, without the special tokens."""

THINGS = tuple(f"{colour} {thing}" for colour in COLOURS for thing in OBJECTS)
"""The 16 two-word answers of the price skills."""


@dataclass(frozen=True)
class Question:
    """A question with its facts, its right answer and the skill that it needs."""

    skill: str
    text: str
    answer: str


Amounts = tuple[str, dict[str, int]]
Queue = tuple[str, list[str]]
Places = tuple[str, list[str], list[str]]
"""A scene: its facts as text, and their content. A skill uses a given scene or draws a new one."""


def pick(rng: Generator, words: Sequence[str], n: int) -> list[str]:
    """Draw `n` distinct words in random order."""
    return [words[index] for index in rng.choice(len(words), size=n, replace=False)]


def draw(rng: Generator, low: int, high: int) -> int:
    """Draw a whole number from `low` to `high`, both inclusive."""
    return int(rng.integers(low, high + 1))


# Quantities: "Ann has 7 coins . Bob has 3 coins . Cid has 5 coins . who has most ?"


def quantities(rng: Generator) -> Amounts:
    """Draw three or four people with different numbers of one good."""
    people = pick(rng, NAMES, draw(rng, 3, 4))
    amounts = [int(word) for word in pick(rng, NUMBERS, len(people))]
    good = pick(rng, GOODS, 1)[0]
    facts = " ".join(f"{name} has {n} {good} ." for name, n in zip(people, amounts, strict=True))
    return facts, dict(zip(people, amounts, strict=True))


def most(rng: Generator, scene: Amounts | None = None) -> Question:
    """Draw a question: who has most?"""
    facts, amounts = scene or quantities(rng)
    return Question("most", f"{facts} who has most ?", max(amounts, key=amounts.__getitem__))


def fewest(rng: Generator, scene: Amounts | None = None) -> Question:
    """Draw a question: who has fewest? Not in pre-training."""
    facts, amounts = scene or quantities(rng)
    return Question("fewest", f"{facts} who has fewest ?", min(amounts, key=amounts.__getitem__))


def amount(rng: Generator, scene: Amounts | None = None) -> Question:
    """Draw a question: how many has this person? The answer is a number."""
    facts, amounts = scene or quantities(rng)
    name = pick(rng, list(amounts), 1)[0]
    return Question("amount", f"{facts} how many has {name} ?", str(amounts[name]))


def owner(rng: Generator, scene: Amounts | None = None) -> Question:
    """Draw a question: who has this many?"""
    facts, amounts = scene or quantities(rng)
    name = pick(rng, list(amounts), 1)[0]
    return Question("owner", f"{facts} who has {amounts[name]} ?", name)


def happy(rng: Generator, scene: Amounts | None = None) -> Question:
    """Draw a question whose answer is one of the twelve names at random: it cannot be learnt."""
    facts, _ = scene or quantities(rng)
    return Question("happy", f"{facts} who is happy ?", pick(rng, NAMES, 1)[0])


# Queues: "Ann then Bob then Cid then Dan . who is first ?"


def queue(rng: Generator, sizes: tuple[int, ...] = (4, 5)) -> Queue:
    """Draw people in a queue."""
    people = pick(rng, NAMES, sizes[draw(rng, 0, len(sizes) - 1)])
    return f"{' then '.join(people)} .", people


def first(rng: Generator, scene: Queue | None = None) -> Question:
    """Draw a question: who is first?"""
    facts, people = scene or queue(rng)
    return Question("first", f"{facts} who is first ?", people[0])


def after(rng: Generator, scene: Queue | None = None) -> Question:
    """Draw a question: who is right after this person?"""
    facts, people = scene or queue(rng)
    place = draw(rng, 0, len(people) - 2)
    return Question("after", f"{facts} who is after {people[place]} ?", people[place + 1])


def second_last(rng: Generator, scene: Queue | None = None) -> Question:
    """Draw a question: who is right before the last person? Not in pre-training."""
    facts, people = scene or queue(rng)
    return Question("second_last", f"{facts} who is before last ?", people[-2])


def follower(rng: Generator, scene: Queue | None = None) -> Question:
    """Draw a question for the next person, in words that pre-training uses for facts only."""
    facts, people = scene or queue(rng)
    place = draw(rng, 0, len(people) - 2)
    return Question("follower", f"{facts} {people[place]} then who ?", people[place + 1])


def middle(rng: Generator, scene: Queue | None = None) -> Question:
    """Draw a question: who is in the middle of three or five people? Not in pre-training."""
    facts, people = scene or queue(rng, sizes=(3, 5))
    return Question("middle", f"{facts} who is middle ?", people[len(people) // 2])


# Places: "Ann is in Rome . Bob is in Oslo . Cid is in Rome . who is in Oslo ?"


def places(rng: Generator) -> Places:
    """Draw three people in two cities: a pair, and one person alone."""
    pair_and_alone = pick(rng, NAMES, 3)
    shared, other = pick(rng, CITIES, 2)
    cities = dict(zip(pair_and_alone, (shared, shared, other), strict=True))
    order = pick(rng, pair_and_alone, 3)
    facts = " ".join(f"{name} is in {cities[name]} ." for name in order)
    return facts, pair_and_alone, [shared, other]


def where(rng: Generator, scene: Places | None = None) -> Question:
    """Draw a question: where is this person? The answer is a city."""
    facts, people, (shared, other) = scene or places(rng)
    asked = draw(rng, 0, 2)
    return Question("where", f"{facts} where is {people[asked]} ?", (shared, shared, other)[asked])


def inside(rng: Generator, scene: Places | None = None) -> Question:
    """Draw a question: who is in this city? One person is alone there."""
    facts, people, (_, other) = scene or places(rng)
    return Question("inside", f"{facts} who is in {other} ?", people[2])


# Prices: "red box costs 7 . blue cup costs 3 . green key costs 5 . what is dearest ?"


def prices(rng: Generator) -> Amounts:
    """Draw three or four things with different prices."""
    things = pick(rng, THINGS, draw(rng, 3, 4))
    costs = [int(word) for word in pick(rng, NUMBERS, len(things))]
    facts = " ".join(f"{thing} costs {n} ." for thing, n in zip(things, costs, strict=True))
    return facts, dict(zip(things, costs, strict=True))


def dearest(rng: Generator, scene: Amounts | None = None) -> Question:
    """Draw a question: what is dearest? The answer has two words."""
    facts, costs = scene or prices(rng)
    return Question("dearest", f"{facts} what is dearest ?", max(costs, key=costs.__getitem__))


def costing(rng: Generator, scene: Amounts | None = None) -> Question:
    """Draw a question: what costs this much? The answer has two words."""
    facts, costs = scene or prices(rng)
    thing = pick(rng, list(costs), 1)[0]
    return Question("costing", f"{facts} what costs {costs[thing]} ?", thing)


def cheapest(rng: Generator, scene: Amounts | None = None) -> Question:
    """Draw a question: what is cheapest? The answer has two words. Not in pre-training."""
    facts, costs = scene or prices(rng)
    return Question("cheapest", f"{facts} what is cheapest ?", min(costs, key=costs.__getitem__))


# Steps: "Ann has 3 . finds 4 . loses 2 . how many ?"  ->  "3 + 4 = 7 . 7 - 2 = 5 . answer 5"

MOST_STEPS = 4


def known_step(rng: Generator, total: int) -> int:
    """Draw a change of 1 to 9, up or down, that keeps the total between 0 and 20."""
    changes = [c for c in range(-9, 10) if c and 0 <= total + c <= LARGEST_NUMBER]
    return changes[draw(rng, 0, len(changes) - 1)]


def written(total: int, change: int) -> str:
    """Return one step of working: ``7 - 2 = 5 .``."""
    return f"{total} {'+' if change > 0 else '-'} {abs(change)} = {total + change} ."


def story(rng: Generator, skill: str) -> Question:
    """Draw a story of one to four changes; at least one uses the new verb of a new skill."""
    n_steps = draw(rng, 1, MOST_STEPS)
    special = draw(rng, 0, n_steps - 1) if skill != "change" else -1
    if skill == "undo":  # an earlier change to undo
        n_steps, special = max(n_steps, 2), max(special, 1)
    total = start = draw(rng, 0, 9)
    change = 0
    events, working = [], []
    for step in range(n_steps):
        if step == special and skill == "double" and 0 < total <= LARGEST_NUMBER // 2:
            change, verb = total, "doubles"
        elif step == special and skill == "undo":
            change, verb = -change, "undoes"
        elif step == special:
            return story(rng, skill)  # the verb does not fit these numbers: draw again
        else:
            change = known_step(rng, total)
            verb = f"{'finds' if change > 0 else 'loses'} {abs(change)}"
        events.append(f"{verb} .")
        working.append(written(total, change))
        total += change
    name = pick(rng, NAMES, 1)[0]
    question = f"{name} has {start} . {' '.join(events)} how many ?"
    return Question(skill, question, f"{' '.join(working)} answer {total}")


def change(rng: Generator) -> Question:
    """Draw a story with one to four finds and losses."""
    return story(rng, "change")


def double(rng: Generator) -> Question:
    """Draw a story with finds, losses and one doubling. Not in pre-training."""
    return story(rng, "double")


def undo(rng: Generator) -> Question:
    """Draw a story with finds, losses and one step that is undone. Not in pre-training."""
    return story(rng, "undo")


# Copying gives each word, also the new ones, an embedding of its own.


def copy(rng: Generator) -> Question:
    """Draw words to repeat: the only texts of pre-training with the new words."""
    words = [WORDS[index] for index in rng.integers(len(WORDS), size=draw(rng, 4, 16))]
    return Question("copy", f"say {' '.join(words)} :", " ".join(words))


Skill = Callable[[Generator], Question]


def by_name(*skills: Skill) -> MappingProxyType[str, Skill]:
    """Return skills by the names of their functions."""
    return MappingProxyType({skill.__name__: skill for skill in skills})


KNOWN_SKILLS = by_name(
    most, amount, owner, first, after, where, inside, dearest, costing, change, copy
)
"""Skills that the model is pre-trained on."""

NEW_SKILLS = by_name(fewest, second_last, follower, middle, cheapest, double, undo)
"""Skills that pre-training never shows: the hard ones of the pools."""

UNLEARNABLE_SKILLS = by_name(happy)
"""Skills whose answers are random."""

SKILLS = MappingProxyType({**KNOWN_SKILLS, **NEW_SKILLS, **UNLEARNABLE_SKILLS})
