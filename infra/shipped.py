"""What is submitted: a command of ours, and all that travels with it to a cluster that knows only storage.

The recipe goes whole, with every default written out, so that it means the same to another version; a file of prompts goes beside it. Code
goes along over Ray's job server (`packed`): the packages that this command line was started from. Of the environment goes what `Where`
reads and was set here. What is secret never goes: whoever sees the job's page would see it. A cluster has its own secrets.
"""

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from infra.config import Recipe, Where, variables
from infra.digests import short_hash
from infra.errors import BadInputError
from infra.progress import say
from infra.resources import COMMANDS, WITH_SOURCE

PACKAGES = ("video2lora", "infra", "pipeline", "teacher", "training")
RECIPE, PROMPTS = "recipe.yaml", "prompts.yaml"  # as what travels is called
# A password, a token, or a query, which may be either; but a key of s3:// may have @ and ? in it.
_MAY_BE_SECRET = re.compile(r"(?<!s3)://.*[@?]|://[^/@]*:[^/@]*@", re.DOTALL)


@dataclass(frozen=True)
class Work:
    """A command with its recipe, and where its data is. `run` names it: the same work, the same name, whoever submits it."""

    command: str
    recipe: Recipe
    where: Where
    source: str | None = None
    prompts: str | None = None  # the text of a prompt set that is a file
    run: str = field(init=False)

    def __post_init__(self) -> None:
        made = [self.command, self.source, self.recipe.model_dump(mode="json"), self.prompts, self.where.data]
        object.__setattr__(self, "run", f"{self.command}-{short_hash(made)}")

    def on(self, where: Where) -> "Work":
        """The same where other settings hold."""
        return replace(self, where=where)

    @cached_property
    def environment(self) -> dict[str, str]:
        """For the job's processes."""
        return {**handed_on(self.where), "VIDEO2LORA_RUN": self.run}

    def files(self, folder: str = "") -> dict[str, str]:
        """Texts that the command reads, by their names; `folder` is where they will lie."""
        recipe = self.recipe.model_dump(mode="json")
        if self.prompts is None:
            return {RECIPE: yaml.safe_dump(recipe, sort_keys=False)}
        recipe["teacher"]["prompts"] = f"{folder}{PROMPTS}"
        return {RECIPE: yaml.safe_dump(recipe, sort_keys=False), PROMPTS: self.prompts}

    def arguments(self, folder: str = "") -> list[str]:
        """What follows `video2lora`."""
        return [self.command, *([self.source] if self.source else []), "--recipe", f"{folder}{RECIPE}"]


def work(command: str, source: str | None, recipe: Recipe, where: Where) -> Work:
    """Raises BadInputError for a command that is not submitted, or not with a SOURCE, and for a file of prompts that is not there."""
    if command not in COMMANDS:
        raise BadInputError(f"submit: got command {command!r}, expected one of {', '.join(COMMANDS)}")
    if source is not None and command not in WITH_SOURCE:
        raise BadInputError(f"submit: got SOURCE {source!r}, and {command} takes none ({', '.join(WITH_SOURCE)} do)")
    if source is None and command == WITH_SOURCE[0]:
        raise BadInputError(f"submit: {command} needs a SOURCE")
    prompts = Path(recipe.teacher.prompts)
    if prompts.suffix not in (".yaml", ".yml"):
        return Work(command, recipe, where, source)
    if not prompts.is_file():
        raise BadInputError(f"recipe: teacher.prompts: got {prompts}, which is no file here")
    return Work(command, recipe, where, source, prompts.read_text())


def handed_on(where: Where) -> dict[str, str]:
    """The variables of the environment that a job is given: all that were set, but secrets and what is of this process alone."""
    found = {}
    for name, value in variables(where).items():
        if name in ("VIDEO2LORA_RUN", "VIDEO2LORA_WEBHOOK", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            continue
        if _MAY_BE_SECRET.search(value):
            say(f"{name} may hold a password (an address with @ or ?) and is not handed on: the cluster's own environment must have it")
            continue
        found[name] = value
    return found


def placed(asked: Work, *, is_here: bool) -> Work:
    """The work with paths that hold where it will run. `is_here`: on this machine alone.

    Raises BadInputError for a path that another machine cannot have; says what it must have.
    """
    for setting, value in _strings(asked.recipe.model_dump(mode="json")):
        if "/" in value and Path(value).is_dir():
            if not os.path.isabs(value):
                raise BadInputError(f"recipe: {setting}: got {value!r}, expected an absolute path: a job runs in another folder")
            _elsewhere(f"recipe: {setting}", value, is_here=is_here)
    for what, address in (("VIDEO2LORA_DATA", asked.where.data), ("SOURCE", asked.source)):
        if "CHANGE-ME" in (address or ""):
            raise BadInputError(f"{what}: got {address}, expected an address of yours in the place of CHANGE-ME")
    data = _place("VIDEO2LORA_DATA", asked.where.data, is_here=is_here)
    source = asked.source and _place("SOURCE", asked.source, is_here=is_here)
    return replace(asked, where=asked.where.model_copy(update={"data": data}), source=source)


def is_own_address(address: str) -> bool:
    """Whether an IP address is this machine's: a socket can have it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        try:
            one.bind((address, 0))
        except OSError:
            return False
    return True


@contextmanager
def packed(asked: Work, *, with_code: bool) -> Iterator[str]:
    """A folder for the block: a job's working directory, which has the recipe, and the packages that run here if it is to."""
    with tempfile.TemporaryDirectory(prefix="video2lora-") as folder:
        for name, text in asked.files().items():
            Path(folder, name).write_text(text)
        here = Path(__file__).parent.parent
        for package in PACKAGES if with_code else ():
            shutil.copytree(here / package, Path(folder, package), ignore=shutil.ignore_patterns("__pycache__"))
        yield folder


def _place(setting: str, value: str, *, is_here: bool) -> str:
    if "://" in value:
        return value.rstrip("/")
    if not is_here and not os.path.isabs(value):
        raise BadInputError(
            f"{setting}: got {value!r}, a folder of this machine, and the cluster is another: expected s3://..., or the absolute path of a "
            "file system that every node has there"
        )
    _elsewhere(setting, value, is_here=is_here)
    return os.path.abspath(value)


def _elsewhere(setting: str, value: str, *, is_here: bool) -> None:
    if not is_here:
        say(f"{setting}: {value} must be a file system that every node of the cluster has there; it is not looked at from here")


def _strings(values: Any, path: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Every text of nested settings, with its path."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _strings(value, (*path, name))
    elif isinstance(values, str):
        yield ".".join(path), values
