"""What the teacher is asked about each video, as data: named sets of prompts in YAML, those in `prompt_sets` or a user's own file.

A set has groups; a video is asked one wording of each. Which one, its id decides by rendezvous hashing: of all wordings the one with the
highest sha256(video, group, wording). So a wording that is added takes a share of the videos from the others and moves no other video,
and a wording whose text is changed stays with its videos. `version` (of task and text) is part of a target's key: a changed text makes
that wording's targets anew and leaves the rest alone.

The video's own questions are asked in each form the set names, where it is trained or validated on; a test video's questions are never
put to the teacher, so no target can hold their answers.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from infra.errors import BadInputError
from infra.settings import Settings

QUESTION = "question"
ASKED_SPLITS = ("train", "validation")
SPANS = Literal["scene", "adjacent", "full"]


@dataclass(frozen=True)
class Prompt:
    """One prompt of one video; for a question, `prompt_id` is the question's id, with the form of its answer where that has a name."""

    prompt_id: str
    task: str
    prompt: str

    @property
    def version(self) -> str:
        """8 hex digits of the task and the text."""
        return hashlib.sha256(f"{self.task}\n{self.prompt}".encode()).hexdigest()[:8]


class Wording(Settings):
    """One way to ask. Without a source or version of its own it has the set's. `span`: the only kind of span it is for."""

    id: str = Field(min_length=1, pattern=r"^[^/\s]+$")  # keys are joined by '/'
    text: str = Field(min_length=1)
    span: SPANS | None = None
    version: str | None = None
    source: str | None = None


class Group(Settings):
    """Of these wordings, each video is asked one."""

    task: str = Field(min_length=1)
    wordings: tuple[Wording, ...] = Field(min_length=1)


class Form(Settings):
    """One form of answer to a video's own questions; `{question}` in its text stands for the question."""

    id: str = Field(pattern=r"^[^/\s]*$")
    text: str
    version: str | None = None
    source: str | None = None

    @model_validator(mode="after")
    def _has_a_place_for_the_question(self) -> Self:
        if self.text.count("{question}") != 1:
            raise ValueError("text needs {question} once, where the question goes")
        return self


class Questions(Settings):
    """The video's own questions, each asked in every form."""

    forms: tuple[Form, ...] = Field(min_length=1)


class PromptSet(Settings):
    """A set as its file has it. `version` and `source` are notes for people; what counts is each prompt's own version."""

    id: str = Field(min_length=1)
    version: str
    source: str
    draw: Literal["rendezvous", "remainder"] = "rendezvous"
    groups: dict[str, Group]
    questions: Questions | None = None

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        ids = [one.id for group in self.groups.values() for one in group.wordings]
        forms = [one.id for one in self.questions.forms] if self.questions else []
        twice = sorted({one for of in (ids, forms) for one in of if of.count(one) > 1})
        if twice:
            raise ValueError(f"ids must differ within a set, got {', '.join(map(repr, twice))} more than once")
        if not ids and not forms:
            raise ValueError("asks nothing: expected groups, questions, or both")
        return self

    @property
    def asks_questions(self) -> bool:
        return self.questions is not None

    @property
    def digest(self) -> str:
        """8 hex digits of all that decides who is asked what: part of what a run was asked for. Notes are not."""
        asked = self.model_dump(mode="json", exclude={"version", "source"})
        for of in [*(group["wordings"] for group in asked["groups"].values()), (asked["questions"] or {"forms": []})["forms"]]:
            for one in of:
                del one["version"], one["source"]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def load_prompt_set(name_or_path: str) -> PromptSet:
    """The set of a shipped name or of a YAML file. Raises BadInputError with the path of each setting that is wrong."""
    file = Path(name_or_path)
    shipped = resources.files("teacher") / "prompt_sets"
    if file.suffix in (".yaml", ".yml") and file.is_file():
        text = file.read_text()
    elif file.suffix not in (".yaml", ".yml") and (shipped / f"{name_or_path}.yaml").is_file():
        text = (shipped / f"{name_or_path}.yaml").read_text()
    else:
        names = sorted(entry.name.removesuffix(".yaml") for entry in shipped.iterdir())
        raise BadInputError(f"teacher.prompts: got {name_or_path!r}: no such YAML file, and not one of {', '.join(names)}")
    try:
        return PromptSet.model_validate_json(json.dumps(yaml.safe_load(text) or {}))
    except yaml.YAMLError as error:
        raise BadInputError(f"prompt set {name_or_path}: not YAML: {error}") from error
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, item['loc'])) or 'set'}: {item['msg']}" for item in error.errors()]
        raise BadInputError(f"prompt set {name_or_path}: " + "; ".join(wrong)) from error


def prompts_of(
    video_id: str, *, split: str, questions: Mapping[str, str], prompt_set: PromptSet, span_kind: str | None = None
) -> list[Prompt]:
    """A video's prompts in a fixed order. `questions`: its own by id, whatever its split; `span_kind` where it is known."""
    asked: list[Prompt] = []
    for name, group in prompt_set.groups.items():
        fitting = [one for one in group.wordings if span_kind is None or one.span in (None, span_kind)] or group.wordings
        picked = _draw(f"{video_id} {name}", fitting, how=prompt_set.draw)
        asked.append(Prompt(picked.id, group.task, picked.text))
    if prompt_set.questions is not None and split in ASKED_SPLITS:
        for question_id, question in sorted(questions.items()):
            for form in prompt_set.questions.forms:
                prompt_id = f"{question_id}.{form.id}" if form.id else question_id
                asked.append(Prompt(prompt_id, QUESTION, form.text.replace("{question}", question)))
    return asked


def _draw(place: str, wordings: Sequence[Wording], *, how: str) -> Wording:
    """One of the wordings, which depends on the place and, but for `remainder`, on each wording's id alone."""
    if how == "remainder":
        return wordings[int.from_bytes(hashlib.sha256(place.encode()).digest()[:8]) % len(wordings)]
    return max(wordings, key=lambda one: hashlib.sha256(f"{place} {one.id}".encode()).digest())
