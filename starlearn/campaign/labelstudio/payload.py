"""Data from Label Studio, validated with limits on types, lengths and depth."""

from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from starlearn.campaign.responses import LONGEST_ANSWER
from starlearn.errors import InputError

MAX_TASKS = 1_000_000
MAX_ANNOTATIONS = 1000
"""Largest number of annotations per task."""
MAX_RESULTS = 10_000
"""Largest number of results per annotation."""
LONGEST_NAME = 1000

Number = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(strict=True, max_length=LONGEST_NAME)]
Text = Annotated[str, Field(strict=True, max_length=LONGEST_ANSWER)]
Time = Annotated[AwareDatetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC))]
T = TypeVar("T")


class Part(BaseModel):
    """Base class of the data; unknown fields are ignored."""

    # from_attributes: the client returns objects of its own classes.
    model_config = ConfigDict(
        extra="ignore", frozen=True, from_attributes=True, allow_inf_nan=False
    )


class User(Part):
    """A user of Label Studio."""

    id: Number
    email: Name | None = None
    username: Name | None = None

    @property
    def name(self) -> str | None:
        """The email or name, or None where the user has neither."""
        return self.email or self.username or None


class Value(Part):
    """Value of a control of the labelling interface."""

    choices: Annotated[list[Text], Field(max_length=1000)] | None = None
    text: Annotated[list[Text], Field(max_length=1000)] | Text | None = None


class Result(Part):
    """Result of one control within an annotation."""

    from_name: Name | None = None
    type: Name | None = None
    value: Value | None = None


class Annotation(Part):
    """Annotation of one task by one user."""

    id: Number
    created_at: Time | None = None
    updated_at: Time | None = None
    """One of both times can be missing, as in old exports."""
    completed_by: Number | User | None = None
    was_cancelled: Flag | None = None
    lead_time: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Time in seconds."""
    result: Annotated[list[Result], Field(max_length=MAX_RESULTS)] | None = None


class LabelStudioTask(Part):
    """One item in Label Studio, with its annotations."""

    id: Number
    project: Number | None = None
    data: Annotated[dict[Name, Any], Field(max_length=10_000)]
    annotations: Annotated[list[Annotation], Field(max_length=MAX_ANNOTATIONS)] | None = None


class Project(Part):
    """A project and its labelling interface."""

    id: Number
    description: Text | None = None
    label_config: Text | None = None


TASKS: TypeAdapter[list[LabelStudioTask]] = TypeAdapter(
    Annotated[list[LabelStudioTask], Field(max_length=MAX_TASKS)]
)
USERS: TypeAdapter[list[User]] = TypeAdapter(list[User])
PROJECT: TypeAdapter[Project] = TypeAdapter(Project)
PROJECTS: TypeAdapter[list[Project]] = TypeAdapter(list[Project])


def parsed(raw: bytes) -> Any:
    """Parse JSON of bounded depth without NaN; ValueError names the line of an error."""
    return from_json(raw, allow_inf_nan=False)


def checked(kind: TypeAdapter[T], value: Any) -> T:
    """Return a value validated as this type; InputError names wrong fields without their values."""
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, found['loc'])) or 'the top level'}: {found['msg']}"
            for found in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(f"{'; '.join(wrong[:3])}{more}") from None
