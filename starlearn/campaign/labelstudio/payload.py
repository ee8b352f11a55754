"""What Label Studio sends, taken apart strictly: kinds, lengths and depth have limits."""

from typing import Annotated, Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from starlearn.campaign.responses import LONGEST_ANSWER
from starlearn.errors import InputError

MOST_TASKS = 1_000_000
MOST_ANNOTATIONS = 1000
"""Of one task."""
MOST_RESULTS = 10_000
"""Of one annotation."""
LONGEST_NAME = 1000

Number = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(strict=True, max_length=LONGEST_NAME)]
Text = Annotated[str, Field(strict=True, max_length=LONGEST_ANSWER)]
T = TypeVar("T")


class Part(BaseModel):
    """A part of an answer; what is not asked for is passed over."""

    # from_attributes: the client makes objects of its own of what the server says.
    model_config = ConfigDict(
        extra="ignore", frozen=True, from_attributes=True, allow_inf_nan=False
    )


class User(Part):
    """Somebody who annotates."""

    id: Number
    email: Name | None = None
    username: Name | None = None


class Value(Part):
    """What a control of the labelling interface holds."""

    choices: Annotated[list[Text], Field(max_length=1000)] | None = None
    text: Annotated[list[Text], Field(max_length=1000)] | Text | None = None


class Result(Part):
    """One control's part of an annotation."""

    from_name: Name | None = None
    type: Name | None = None
    value: Value | None = None


class Annotation(Part):
    """What one user said about one task."""

    id: Number
    created_at: AwareDatetime
    updated_at: AwareDatetime
    completed_by: Number | User | None = None
    was_cancelled: Flag | None = None
    lead_time: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Seconds."""
    result: Annotated[list[Result], Field(max_length=MOST_RESULTS)] | None = None


class Task(Part):
    """One item as Label Studio keeps it, with all that was said about it."""

    id: Number
    project: Number | None = None
    data: Annotated[dict[Name, Any], Field(max_length=10_000)]
    annotations: Annotated[list[Annotation], Field(max_length=MOST_ANNOTATIONS)] | None = None


class Project(Part):
    """A project and its labelling interface."""

    id: Number
    description: Text | None = None
    label_config: Text | None = None


TASKS: TypeAdapter[list[Task]] = TypeAdapter(Annotated[list[Task], Field(max_length=MOST_TASKS)])
USERS: TypeAdapter[list[User]] = TypeAdapter(list[User])
PROJECT: TypeAdapter[Project] = TypeAdapter(Project)
PROJECTS: TypeAdapter[list[Project]] = TypeAdapter(list[Project])


def parsed(raw: bytes) -> Any:
    """Parse JSON of bounded depth without NaN; ValueError says at which line it is not."""
    return from_json(raw, allow_inf_nan=False)


def checked(kind: TypeAdapter[T], value: Any) -> T:
    """Return a value as the kind it must be.

    Raises
    ------
    InputError
        Naming the first places that are wrong, never what stands there.
    """
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, found['loc'])) or 'the whole'}: {found['msg']}"
            for found in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{'; '.join(wrong[:3])}{more}") from None
