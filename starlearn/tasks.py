"""ChoiceTask and GenerationTask: prompts from items, and labels from answers."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, ClassVar

from starlearn.errors import InputError, listed, row_lines
from starlearn.settings import Acquisition, LoRA, Settings, Training, with_hints

Item = str | Mapping[str, Any]
Fields = dict[str, str]
"""An item as the text of every field of the prompt."""


def template_fields(template: str) -> list[str]:
    """Return the names of the fields of a prompt template, in order of first appearance."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(
            f"The prompt {template!r} is not a valid template ({error}). Write a field as "
            "{question}, and a literal brace twice: {{ or }}."
        ) from None
    fields: list[str] = []
    for _, name, form, conversion in parsed:
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            raise InputError(
                f"The prompt {template!r} has a field that is not a plain name: {name!r}. "
                "Write a field as {question}, without position, attribute or format."
            )
        if name not in fields:
            fields.append(name)
    return fields


class Task(Settings):
    """Base of both tasks: a prompt template, and the text between prompt and answer."""

    prompt: str
    separator: str | None
    chat: bool
    system: str | None

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "prompt": [str],
        "separator": [str, None],
        "chat": ["boolean"],
        "system": [str, None],
    }

    def check(self) -> None:
        """Check every parameter and the template."""
        super().check()
        if self.system is not None and not (self.chat and self.system.strip()):
            raise InputError(
                "system is the system's message in a chat, and needs chat=True and some text. Use "
                "system=None, or write it into the prompt."
            )
        if not template_fields(self.prompt):
            raise InputError(
                f"The prompt {self.prompt!r} has no field, so every item would get the same "
                "prompt. Put the item's text in, as in '{text}\\nAnswer:'."
            )

    @property
    def joint(self) -> str:
        """Text between prompt and answer."""
        if self.separator is None:
            return "" if self.chat else " "
        return self.separator

    def fill(self, items: Sequence[Item], rows: Sequence[int] | None = None) -> list[Fields]:
        """Return each item as a dict with a string for every field of the prompt.

        Parameters
        ----------
        items : sequence of str or mapping, length m
            A string is the value of the prompt's only field.
        rows : sequence of int, optional
            Row numbers for error messages; by default 0 .. m - 1.

        Returns
        -------
        list of dict, length m

        Raises
        ------
        InputError
            Naming the rows that are empty, of a wrong type, not valid Unicode, or lack a field of
            the prompt.
        """
        fields = template_fields(self.prompt)
        filled: list[dict[str, str]] = []
        complaints: list[str] = []
        for row, item in zip(range(len(items)) if rows is None else rows, items, strict=True):
            try:
                filled.append(_fill_one(item, fields))
            except InputError as error:
                complaints.append(f"row {row}: {error}")
        if complaints:
            raise InputError(
                f"{len(complaints)} of {len(items)} items cannot be used with the prompt "
                f"{self.prompt!r}:{row_lines(complaints)}".rstrip()
            )
        return filled


def _fill_one(item: Item, fields: list[str]) -> dict[str, str]:
    if isinstance(item, str):
        if len(fields) > 1:
            raise InputError(
                f"a string cannot fill {len(fields)} fields; give a dict with {', '.join(fields)}"
            )
        values: Mapping[str, Any] = {fields[0]: item}
    elif isinstance(item, Mapping):
        values = item
    else:
        raise InputError(
            f"expected a string or a dict of fields, got {type(item).__name__} ({item!r:.40}); "
            "remove the row or fill it in"
        )
    missing = [name for name in fields if name not in values]
    if missing:
        raise InputError(
            f"the prompt's field {{{missing[0]}}} is missing; the item has "
            f"{', '.join(map(str, values)) or 'no fields'}; rename one of them in the prompt"
        )
    texts = {name: _as_text(values[name], name) for name in fields}
    if not any(text.strip() for text in texts.values()):
        raise InputError("the text is empty; remove the row")
    return texts


def _as_text(value: Any, name: str) -> str:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"field {name!r} is not valid Unicode (lone surrogate at character "
                f"{error.start}); read the file as UTF-8"
            ) from None
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return str(value)
        except ValueError:  # Python writes no more digits than sys.get_int_max_str_digits()
            raise InputError(
                f"field {name!r} is a whole number of too many digits; write it as text"
            ) from None
    if isinstance(value, float) and math.isfinite(value):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy scalar
        return _as_text(value.item(), name)
    raise InputError(
        f"field {name!r} holds {value!r:.40} of type {type(value).__name__}, not text; "
        "remove the row or fill it in"
    )


class ChoiceTask(Task):
    """Items whose answer is one of a closed set.

    Parameters
    ----------
    prompt : str, default="{text}"
        Template with the item's fields in braces. A string item is the value of the only field.
    choices : sequence of str or None, default=None
        All possible answers, as labels and as text after the prompt. None takes the labels seen in
        `fit`, and a query before the first fit is then not possible.
    separator : str or None, default=None
        Text between prompt and answer. None is a space, or nothing after a chat template.
    chat : bool, default=False
        Wrap the prompt in the tokenizer's chat template as the user's message.
    system : str or None, default=None
        With `chat`, the system's message before it.

    Notes
    -----
    Choices and labels are compared in Unicode's form NFC: an "é" of one character and an "e" with
    a combining accent are the same. Predicted labels are in this form.

    The score of a choice is the probability of all its tokens after the prompt, normalised over
    the choices. Where one choice is the beginning of another ("1" and "14"), every choice is scored
    with the end of sequence, so that the two remain different answers.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **Task._parameter_constraints,
        "choices": ["array-like", None],
    }

    @with_hints
    def __init__(
        self,
        prompt: str = "{text}",
        choices: Sequence[str] | None = None,
        *,
        separator: str | None = None,
        chat: bool = False,
        system: str | None = None,
    ) -> None:
        self.prompt = prompt
        self.choices = choices
        self.separator = separator
        self.chat = chat
        self.system = system

    def check(self) -> None:
        """Check every parameter, the template and the choices."""
        super().check()
        if self.choices is None:
            return
        wrong = [repr(c) for c in self.choices if not isinstance(c, str) or not c.strip()]
        if wrong:
            raise InputError(
                f"Every choice must be a string with text in it; got {listed(wrong)}. Write "
                'numbers as strings: choices=["1", "2"].'
            )
        choices = self.composed_choices() or []
        if len(set(choices)) < len(choices):
            twice = sorted({repr(c) for c in choices if choices.count(c) > 1})
            raise InputError(f"Choices must be distinct; given more than once: {listed(twice)}.")
        if len(choices) < 2:
            raise InputError(f"A ChoiceTask needs at least two choices, got {choices!r}.")

    def composed_choices(self) -> list[str] | None:
        """Return the choices in Unicode's form NFC, in which equal texts are equal strings."""
        if self.choices is None:
            return None
        return [unicodedata.normalize("NFC", choice) for choice in self.choices]


class GenerationTask(Task):
    """Items whose answer is free text, generated by the model token by token.

    Parameters
    ----------
    prompt : str, default="{text}"
        Template with the item's fields in braces.
    max_new_tokens : int, default=64
        The longest answer that is generated, in tokens.
    answer_pattern : str or None, default=None
        Regular expression of the final answer in a text. The last match counts, or the first of its
        groups that took part in it. An empty answer does not count. None compares whole texts. A
        text without a match equals no other answer.
    separator, chat, system
        As in :class:`ChoiceTask`.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **Task._parameter_constraints,
        "max_new_tokens": [int],
        "answer_pattern": [str, None],
    }

    @with_hints
    def __init__(
        self,
        prompt: str = "{text}",
        max_new_tokens: int = 64,
        answer_pattern: str | None = None,
        *,
        separator: str | None = None,
        chat: bool = False,
        system: str | None = None,
    ) -> None:
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.answer_pattern = answer_pattern
        self.separator = separator
        self.chat = chat
        self.system = system

    def check(self) -> None:
        """Check every parameter, the template and the pattern."""
        super().check()
        if isinstance(self.max_new_tokens, bool) or self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {self.max_new_tokens!r}.")
        if self.answer_pattern is not None:
            try:
                re.compile(self.answer_pattern)
            except re.error as error:
                raise InputError(
                    f"answer_pattern {self.answer_pattern!r} is not a regular expression: {error}."
                ) from None

    def find(self, text: str) -> str | None:
        """Return the final answer in a text, or None where the pattern does not match.

        Commas that separate thousands are removed from an answer that is a number.
        """
        text = unicodedata.normalize("NFC", text)
        if self.answer_pattern is None:
            return text.strip()
        answer = None
        for match in re.finditer(self.answer_pattern, text):
            groups = [group for group in match.groups() if group is not None]
            answer = (groups or [match.group(0)])[0].strip() or answer
        if answer is not None and re.fullmatch(r"[-+]?\d{1,3}(,\d{2,3})*,\d{3}(\.\d+)?", answer):
            return answer.replace(",", "")
        return answer

    def parse(self, text: str) -> str:
        """Return the final answer in a text, or the whole text where the pattern does not match.

        Examples
        --------
        >>> GenerationTask(answer_pattern=r"#### (.+)").parse("6 * 12 = 72\\n#### 1,072")
        '1072'
        >>> GenerationTask().parse(" blue ")
        'blue'
        """
        found = self.find(text)
        return text.strip() if found is None else found

    def correct(self, texts: Sequence[str], labels: Sequence[str]) -> list[bool]:
        """Return whether each text has the final answer of its label; without one it is wrong."""
        pairs = zip(map(self.find, texts), map(self.find, labels), strict=True)
        return [answer is not None and answer == gold for answer, gold in pairs]


DEFAULTS: dict[str, tuple[type[Any], type[Any]]] = {
    "task": (ChoiceTask, Task),
    "adapter": (LoRA, LoRA),
    "acquisition": (Acquisition, Acquisition),
    "training": (Training, Training),
}
"""For each group of a learner's settings: the class in place of None, and the base class."""
