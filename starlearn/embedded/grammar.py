"""The grammar of the built-in tasks: every skill is a function from a generator to an item."""

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
TELLING_WORDS = ("has", "is", "in", "then", "finds", "loses", "costs", "answer", "say")
ASKING_WORDS = ("who", "what", "where", "how", "many", "most", "first", "after", "dearest")
NEW_TELLING_WORDS = ("doubles", "again", "undoes")
NEW_ASKING_WORDS = ("fewest", "last", "before", "middle", "with", "alone", "cheapest", "happy")
NEW_WORDS = (*NEW_TELLING_WORDS, *NEW_ASKING_WORDS)
"""Words that in pre-training stand in no question and no fact, only in texts to be copied.

`last` and `before` do their work together; `with`, `alone` and `again` are spare.
"""
WORDS = (
    *(*NAMES, *CITIES, *COLOURS, *OBJECTS, *GOODS, *NUMBERS),
    *(*SIGNS, *TELLING_WORDS, *ASKING_WORDS, *NEW_WORDS),
)
"""The whole vocabulary, without the special tokens."""

THINGS = tuple(f"{colour} {thing}" for colour in COLOURS for thing in OBJECTS)
"""The 16 two-word answers of the price skills."""


@dataclass(frozen=True)
class Item:
    """A question, its right answer and the skill that it asks for."""

    skill: str
    question: str
    answer: str


Amounts = tuple[str, dict[str, int]]
Queue = tuple[str, list[str]]
Places = tuple[str, list[str], list[str]]
"""A scene: its facts as text, and what they say. A skill asks about a given or a new scene."""


def pick(rng: Generator, words: Sequence[str], n: int) -> list[str]:
    """Draw `n` different words, in random order."""
    return [words[index] for index in rng.choice(len(words), size=n, replace=False)]


def draw(rng: Generator, low: int, high: int) -> int:
    """Draw a whole number from `low` to `high`, both included."""
    return int(rng.integers(low, high + 1))


# Quantities: "Ann has 7 coins . Bob has 3 coins . Cid has 5 coins . who has most ?"


def quantities(rng: Generator) -> Amounts:
    """Three or four people and different numbers of one good."""
    people = pick(rng, NAMES, draw(rng, 3, 4))
    amounts = [int(word) for word in pick(rng, NUMBERS, len(people))]
    good = pick(rng, GOODS, 1)[0]
    facts = " ".join(f"{name} has {n} {good} ." for name, n in zip(people, amounts, strict=True))
    return facts, dict(zip(people, amounts, strict=True))


def most(rng: Generator, scene: Amounts | None = None) -> Item:
    """Who has most?"""
    facts, amounts = scene or quantities(rng)
    return Item("most", f"{facts} who has most ?", max(amounts, key=amounts.__getitem__))


def fewest(rng: Generator, scene: Amounts | None = None) -> Item:
    """Who has fewest? Never asked in pre-training."""
    facts, amounts = scene or quantities(rng)
    return Item("fewest", f"{facts} who has fewest ?", min(amounts, key=amounts.__getitem__))


def amount(rng: Generator, scene: Amounts | None = None) -> Item:
    """How many has this one? A number."""
    facts, amounts = scene or quantities(rng)
    name = pick(rng, list(amounts), 1)[0]
    return Item("amount", f"{facts} how many has {name} ?", str(amounts[name]))


def owner(rng: Generator, scene: Amounts | None = None) -> Item:
    """Who has this many?"""
    facts, amounts = scene or quantities(rng)
    name = pick(rng, list(amounts), 1)[0]
    return Item("owner", f"{facts} who has {amounts[name]} ?", name)


def happy(rng: Generator, scene: Amounts | None = None) -> Item:
    """Who is happy? Any of the twelve names, at random: nobody can learn it."""
    facts, _ = scene or quantities(rng)
    return Item("happy", f"{facts} who is happy ?", pick(rng, NAMES, 1)[0])


# Queues: "Ann then Bob then Cid then Dan . who is first ?"


def queue(rng: Generator, sizes: tuple[int, ...] = (4, 5)) -> Queue:
    """People one after the other."""
    people = pick(rng, NAMES, sizes[draw(rng, 0, len(sizes) - 1)])
    return f"{' then '.join(people)} .", people


def first(rng: Generator, scene: Queue | None = None) -> Item:
    """Who is first?"""
    facts, people = scene or queue(rng)
    return Item("first", f"{facts} who is first ?", people[0])


def after(rng: Generator, scene: Queue | None = None) -> Item:
    """Who is right after this one?"""
    facts, people = scene or queue(rng)
    place = draw(rng, 0, len(people) - 2)
    return Item("after", f"{facts} who is after {people[place]} ?", people[place + 1])


def second_last(rng: Generator, scene: Queue | None = None) -> Item:
    """Who is right before the last one? Never asked in pre-training."""
    facts, people = scene or queue(rng)
    return Item("second_last", f"{facts} who is before last ?", people[-2])


def follower(rng: Generator, scene: Queue | None = None) -> Item:
    """Who comes next, in words that pre-training uses for facts only. Never asked there."""
    facts, people = scene or queue(rng)
    place = draw(rng, 0, len(people) - 2)
    return Item("follower", f"{facts} {people[place]} then who ?", people[place + 1])


def middle(rng: Generator, scene: Queue | None = None) -> Item:
    """Who stands in the middle of three or five? Never asked in pre-training."""
    facts, people = scene or queue(rng, sizes=(3, 5))
    return Item("middle", f"{facts} who is middle ?", people[len(people) // 2])


# Places: "Ann is in Rome . Bob is in Oslo . Cid is in Rome . who is in Oslo ?"


def places(rng: Generator) -> Places:
    """Three people in two cities: the first two named together are a pair, the third is alone."""
    pair_and_alone = pick(rng, NAMES, 3)
    shared, other = pick(rng, CITIES, 2)
    cities = dict(zip(pair_and_alone, (shared, shared, other), strict=True))
    order = pick(rng, pair_and_alone, 3)
    facts = " ".join(f"{name} is in {cities[name]} ." for name in order)
    return facts, pair_and_alone, [shared, other]


def where(rng: Generator, scene: Places | None = None) -> Item:
    """Where is this one? A city."""
    facts, people, (shared, other) = scene or places(rng)
    asked = draw(rng, 0, 2)
    return Item("where", f"{facts} where is {people[asked]} ?", (shared, shared, other)[asked])


def inside(rng: Generator, scene: Places | None = None) -> Item:
    """Who is in this city? One person, asked about the city of the one who is alone."""
    facts, people, (_, other) = scene or places(rng)
    return Item("inside", f"{facts} who is in {other} ?", people[2])


# Prices: "red box costs 7 . blue cup costs 3 . green key costs 5 . what is dearest ?"


def prices(rng: Generator) -> Amounts:
    """Three or four things and their different prices."""
    things = pick(rng, THINGS, draw(rng, 3, 4))
    costs = [int(word) for word in pick(rng, NUMBERS, len(things))]
    facts = " ".join(f"{thing} costs {n} ." for thing, n in zip(things, costs, strict=True))
    return facts, dict(zip(things, costs, strict=True))


def dearest(rng: Generator, scene: Amounts | None = None) -> Item:
    """What is dearest? Two words."""
    facts, costs = scene or prices(rng)
    return Item("dearest", f"{facts} what is dearest ?", max(costs, key=costs.__getitem__))


def costing(rng: Generator, scene: Amounts | None = None) -> Item:
    """What costs this much? Two words."""
    facts, costs = scene or prices(rng)
    thing = pick(rng, list(costs), 1)[0]
    return Item("costing", f"{facts} what costs {costs[thing]} ?", thing)


def cheapest(rng: Generator, scene: Amounts | None = None) -> Item:
    """What is cheapest? Two words; never asked in pre-training."""
    facts, costs = scene or prices(rng)
    return Item("cheapest", f"{facts} what is cheapest ?", min(costs, key=costs.__getitem__))


# Steps: "Ann has 3 . finds 4 . loses 2 . how many ?"  ->  "3 + 4 = 7 . 7 - 2 = 5 . answer 5"

MOST_STEPS = 4


def known_step(rng: Generator, total: int) -> int:
    """Draw a change of 1 to 9, up or down, that keeps the total between 0 and 20."""
    changes = [c for c in range(-9, 10) if c and 0 <= total + c <= LARGEST_NUMBER]
    return changes[draw(rng, 0, len(changes) - 1)]


def written(total: int, change: int) -> str:
    """One line of working: ``7 - 2 = 5 .``."""
    return f"{total} {'+' if change > 0 else '-'} {abs(change)} = {total + change} ."


def story(rng: Generator, skill: str) -> Item:
    """Tell of one to four changes; for a new verb, at least one of them uses it."""
    n_steps = draw(rng, 1, MOST_STEPS)
    special = draw(rng, 0, n_steps - 1) if skill != "change" else -1
    if skill == "undo":  # there must be something to undo
        n_steps, special = max(n_steps, 2), max(special, 1)
    total = start = draw(rng, 0, 9)
    change = 0
    told, working = [], []
    for step in range(n_steps):
        if step == special and skill == "double" and 0 < total <= LARGEST_NUMBER // 2:
            change, verb = total, "doubles"
        elif step == special and skill == "undo":
            change, verb = -change, "undoes"
        elif step == special:
            return story(rng, skill)  # the verb does not fit these numbers: tell another story
        else:
            change = known_step(rng, total)
            verb = f"{'finds' if change > 0 else 'loses'} {abs(change)}"
        told.append(f"{verb} .")
        working.append(written(total, change))
        total += change
    name = pick(rng, NAMES, 1)[0]
    question = f"{name} has {start} . {' '.join(told)} how many ?"
    return Item(skill, question, f"{' '.join(working)} answer {total}")


def change(rng: Generator) -> Item:
    """One to four finds and losses."""
    return story(rng, "change")


def double(rng: Generator) -> Item:
    """Finds, losses and one doubling. Never asked in pre-training."""
    return story(rng, "double")


def undo(rng: Generator) -> Item:
    """Finds, losses, and one step undone. Never asked in pre-training."""
    return story(rng, "undo")


# Copying: gives every word, the new ones too, an embedding that tells it from the others.


def copy(rng: Generator) -> Item:
    """Say these words again: the only text of pre-training in which the new words stand."""
    words = [WORDS[index] for index in rng.integers(len(WORDS), size=draw(rng, 4, 16))]
    return Item("copy", f"say {' '.join(words)} :", " ".join(words))


Skill = Callable[[Generator], Item]

KNOWN_SKILLS: MappingProxyType[str, Skill] = MappingProxyType(
    {
        skill.__name__: skill
        for skill in (
            *(most, amount, owner, first, after, where, inside, dearest, costing, change, copy),
        )
    }
)
"""What the model is pre-trained on."""

NEW_SKILLS: MappingProxyType[str, Skill] = MappingProxyType(
    {
        skill.__name__: skill
        for skill in (*(fewest, second_last, follower, middle, cheapest, double, undo),)
    }
)
"""What the model has never been asked: the hard skills of the pools."""

UNLEARNABLE_SKILLS: MappingProxyType[str, Skill] = MappingProxyType({"happy": happy})
"""Questions whose answers are random."""

SKILLS: MappingProxyType[str, Skill] = MappingProxyType(
    {**KNOWN_SKILLS, **NEW_SKILLS, **UNLEARNABLE_SKILLS}
)
