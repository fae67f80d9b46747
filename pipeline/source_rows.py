"""A SOURCE's row -> what `manifest` takes from it, or why it takes nothing: strict, so that a typo is a reject and not a default."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from infra.attempt import Row, reject
from infra.contents import Span
from pipeline.roots import Roots
from pipeline.sources import SourceRow

STAGE = "manifest"


class _Row(BaseModel):
    """Strict: a number in quotes is no number. Columns beside these are not looked at."""

    model_config = ConfigDict(strict=True, frozen=True)

    start_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    end_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    uri: str

    @field_validator("start_s")
    @classmethod
    def _from_the_beginning(cls, start_s: float | None) -> float | None:
        return start_s or None  # 0 says no more than nothing does, and another span would be another video

    @model_validator(mode="after")
    def _lasts(self) -> "_Row":
        if self.end_s is not None and self.end_s <= (self.start_s or 0.0):
            raise ValueError(f"end_s: got {self.end_s}, expected more than start_s = {self.start_s or 0.0}")
        return self

    @property
    def span(self) -> Span:
        return self.start_s, self.end_s


class VideoRow(_Row):
    split: Literal["train", "validation", "test"] = "train"
    scenes: Any = None  # a list of [start_s, end_s], for `pipeline.scenes` to look at


class QuestionRow(_Row):
    question: str = Field(min_length=1)
    references: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    style: str = ""
    benchmark: str = ""
    task: Literal["question", "caption"] = "question"
    told_apart_by: str = ""  # where a benchmark asks the same of the same video twice, with other references


def parse_video(row: SourceRow, roots: Roots) -> VideoRow | Row:
    """The row with its address in full, or its reject."""
    if not row.problem and row.path in (None, ""):
        return reject(STAGE, row.key, "no_path", "no uri in it")
    fields = _fields(row)
    try:
        if row.problem:
            raise ValueError(row.problem)
        parsed = VideoRow.model_validate(fields)
        return parsed.model_copy(update={"uri": roots.resolve(parsed.uri)})
    except ValueError as error:
        return reject(STAGE, row.key, "bad_row", _why(error))


def parse_question(row: SourceRow, roots: Roots, *, benchmark: str) -> QuestionRow | Row:
    """The row with its video's address in full, or its reject. `benchmark` is the name for rows that have none."""
    fields = {"benchmark": benchmark} | _fields(row)
    try:
        if row.problem:
            raise ValueError(row.problem)
        parsed = QuestionRow.model_validate(fields)
        return parsed.model_copy(update={"uri": roots.resolve(parsed.uri)})
    except ValueError as error:
        return reject(STAGE, row.key, "bad_row", _why(error))


def _fields(row: SourceRow) -> dict[str, Any]:
    """Without nulls, which mean "not said", and with the path under one name."""
    return {name: value for name, value in row.fields.items() if value is not None} | {"uri": row.path}


def _why(error: ValueError) -> str:
    """What is wrong with a row, on one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    wrong = error.errors(include_url=False)
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'row'}: {one['msg']} (got {one['input']!r})" for one in wrong)
