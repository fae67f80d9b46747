"""A question, its references and an answer -> what a judge is told; a judge's reply -> its mark.

Rubrics lie in `rubrics`, in our words; facts from the paper's appendix A and section 4.3: captions by how many facts of the reference they
cover, where only contradictions are punished; questions by the answer that the output implies, extracted first; 0 to 5 points each. The
paper's text says 1 to 5 and its rubric 0 to 5: we take the rubric, and points / 5 is the score.

What is marked is quoted: a JSON string on one line between two fixed lines. It can spell neither a line end nor a quotation mark that
ends it, so no words of an answer stand outside its quotation marks; and neither `<` nor `[`, so it spells no token of a chat template.
"""

import json
from functools import cache
from importlib import resources
from typing import Annotated, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from infra.artifacts import TASKS
from infra.digests import short_hash
from infra.judged import Judged

MOST_POINTS = 5
NO_OBJECT = "it has no whole JSON object"
TEMPLATE_MARKS = "<["  # how tokens of chat templates begin: <|im_end|>, </s>, [INST]
THINKING, THOUGHT = "<think>", "</think>"


class Mark(BaseModel):
    """A judge's reply. How long its texts may be is said to the judge alone (the schema): one too long is a mark all the same."""

    model_config = ConfigDict(strict=True, extra="forbid")

    extracted: Annotated[str, Field(json_schema_extra={"maxLength": 300})] | None
    rationale: Annotated[str, Field(json_schema_extra={"maxLength": 500})]
    points: int = Field(ge=0, le=MOST_POINTS)

    @field_validator("extracted", "rationale")
    @classmethod
    def _is_unicode(cls, text: str | None) -> str | None:
        return None if text is None else whole_letters(text)

    @property
    def score(self) -> float:
        """In [0, 1]."""
        return self.points / MOST_POINTS


def schema(*, with_lengths: bool) -> dict[str, Any]:
    """Of a reply, as JSON Schema. Endpoints are given no lengths, which OpenAI's own refuses; vLLM is, so that a text comes to its end."""
    return _without(Mark.model_json_schema(), ("title", "description") if with_lengths else ("title", "description", "maxLength"))


def told(judged: Judged, *, problem: str = "") -> str:
    """What a judge is told; `problem`: what was wrong with its last reply to this. Raises ValueError for what cannot be marked."""
    if judged.task not in TASKS:
        raise ValueError(f"task: got {judged.task!r}, expected {' or '.join(TASKS)}")
    if not judged.references:
        raise ValueError("references: got none, expected at least one to mark by")
    words = {"question": quoted(judged.question), "references": [quoted(one) for one in judged.references], "answer": quoted(judged.answer)}
    return _templates().get_template(f"{judged.task}.jinja").render(**words, problem=problem).strip()


def quoted(text: str) -> str:
    """As a JSON string that is one line and can be told from all around it; `json.loads` gives the text again."""
    return "".join(
        one if one.isprintable() and one not in TEMPLATE_MARKS else _escaped(one) for one in json.dumps(text, ensure_ascii=False)
    )


def whole_letters(text: str) -> str:
    """Without halves of letters, which JSON can hold (a lone surrogate) and no table can."""
    return text.encode(errors="replace").decode()


def mark_of(reply: str, *, is_cut_off: bool = False) -> Mark:
    """The mark in a reply: the JSON object after all thinking, whatever stands around it. Raises ValueError that says what is wrong.

    What stands in thinking is a draft, and no mark. A reply that was cut off may be a server's thinking whose opening stood in the
    prompt, so of these only one that begins with its object counts.
    """
    said = reply.strip()
    if not said.startswith("{"):
        said = said.rpartition(THOUGHT)[2].strip()
    if said.startswith(THINKING) or (is_cut_off and not said.startswith("{")):
        raise ValueError(NO_OBJECT)
    return _mark(said)


def rubrics_digest() -> str:
    """8 hex digits of all that decides what a judge is told and may say."""
    folder = resources.files("teacher") / "rubrics"
    texts = {one.name: one.read_text() for one in folder.iterdir() if one.name.endswith(".jinja")}
    return short_hash({"texts": texts, "schema": schema(with_lengths=True)})


def _mark(text: str) -> Mark:
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise ValueError(NO_OBJECT)
    try:  # not strict: models write line ends into strings, and so does xgrammar let them where a string has a greatest length
        return Mark.model_validate(json.loads(text[start : end + 1], strict=False))
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError("it is no JSON (nested too deep)") from error
    except ValidationError as error:
        names = ((item["loc"][0] if item["loc"] else "the object", item["msg"]) for item in error.errors(include_url=False))
        wrong = [
            f"{name if name in {'the object', *Mark.model_fields} else 'a name that is not asked for'}: {said}" for name, said in names
        ]
        raise ValueError("; ".join(wrong)) from error


def _escaped(one: str) -> str:
    return f"\\u{ord(one):04x}" if ord(one) < 1 << 16 else json.dumps(one)[1:-1]


def _without(value: Any, names: tuple[str, ...]) -> Any:
    """A schema without these keywords, at any depth."""
    if isinstance(value, dict):
        return {name: _without(inner, names) for name, inner in value.items() if name not in names}
    return [_without(inner, names) for inner in value] if isinstance(value, list) else value


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("teacher", "rubrics"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701  a prompt is no page
    )
