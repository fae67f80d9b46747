"""What is wrong with what a page says: each function yields a line for each mistake, and nothing is run. The rule: `docs_pages`."""

import ast
import functools
import importlib.util
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
import yaml
from pydantic import BaseModel
from typer.exceptions import TyperException

from infra.cli import app
from infra.config import Recipe, Where, checked, load_recipe
from infra.errors import BadInputError
from teacher.prompts import PromptSet
from tests.docs_pages import FENCE, FOLDERS, OURS, PLACEHOLDER, PROGRAMS, ROOT, SHELLS, Fence, commands, program_of, simple_commands
from training.sweep import Sweep, runs_of


def wrong_in_fence(fence: Fence) -> Iterator[str]:
    """Whatever its language."""
    if fence.language == "yaml":
        yield from wrong_yaml(fence.text)
    elif fence.language == "python":
        yield from wrong_python(fence.text)
    elif fence.is_run and fence.language not in SHELLS:
        yield f"only commands and Python can be run: {fence.text[:60]!r}"
    for line in commands(fence):
        for words in simple_commands(line) or [[line]]:
            yield from (f"{line}: {said}" for said in wrong_command(words))


def wrong_command(words: list[str]) -> Iterator[str]:
    """kubectl's is put to kubectl itself, in `test_docs`."""
    while words and (variable := re.match(r"([A-Z_0-9]+)=", words[0])):
        yield from wrong_variable(variable[1])
        words = words[1:]
    program, rest = program_of(words), words[1:]
    if program not in PROGRAMS:
        yield f"{program!r} is none of the programs of tests/docs_pages.py; a fence that holds no commands has a language, as `text`"
    elif program == OURS:
        yield from wrong_of_ours(rest)
    elif program == "make":
        yield from wrong_make(rest)
    elif program == "python":
        yield from wrong_module(rest)
    elif program == "docker":
        if rest[0] == "build" and not (ROOT / rest[rest.index("-f") + 1]).is_file():
            yield f"{rest[rest.index('-f') + 1]}: no such file"
    elif program == "export":
        for word in rest:
            yield from wrong_variable(word.split("=")[0])


@functools.cache
def _command_line() -> Any:
    return typer.main.get_command(app)


def wrong_of_ours(words: list[str]) -> Iterator[str]:
    """As the command line reads it, but for what its commands find out themselves. Nothing is run."""
    command = _command_line()
    try:
        context = command.make_context(OURS, list(words))
        while left := [*context._protected_args, *context.args] if hasattr(context.command, "commands") else []:
            name, command, left = context.command.resolve_command(context, left)
            context = command.make_context(name, left, parent=context)
    except TyperException as error:
        yield error.format_message()
        return
    except typer.Exit:  # --help
        return
    yield from wrong_recipe(context.params.get("recipe"))
    submitted = context.params.get("command")
    if submitted is not None and submitted not in _command_line().commands:
        yield f"no command {submitted} to submit"


def wrong_recipe(name: str | None) -> Iterator[str]:
    """A file is the reader's."""
    if name is None or name.endswith((".yaml", ".yml")) or PLACEHOLDER.fullmatch(name):
        return
    try:
        load_recipe(name)
    except BadInputError as error:
        yield str(error)


def wrong_span_of_ours(span: str) -> Iterator[str]:
    """Of a command within the text, which may be cut short: that it and its options are there."""
    words = re.sub(r"\.\.\.|…|[\[\]\"']", " ", span).split()[1:]
    command = _command_line()
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            if not PLACEHOLDER.fullmatch(words[0]) and not getattr(command, "invoke_without_command", False):
                yield f"{span}: no such command"
            return
        command = command.commands[words.pop(0)]
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    for word in words:
        if word.startswith("-") and word.rstrip(",;.") not in options:
            yield f"{span}: no option {word}"


def wrong_make(words: list[str]) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text()
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    for word in words:
        name = word.split("=")[0]
        if word != name and not re.search(rf"^{name} [?:]?=", makefile, flags=re.MULTILINE):
            yield f"make has no variable {name}"
        if word == name and name not in targets.split():
            yield f"make has no target {name}"


def wrong_module(words: list[str]) -> Iterator[str]:
    """`python ... -m MODULE --options`: of ours by their source, which is not imported."""
    modules = [name for flag, name in itertools.pairwise(words) if flag == "-m"]
    if not modules:
        yield "expected python -m MODULE"
        return
    module = modules[-1]  # a profiler before it is run likewise
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        yield f"no module {module}"
        return
    source = Path(found.origin).read_text()
    for word in words[words.index(module) + 1 :]:
        if word.startswith("--") and f'"{word.split("=")[0]}"' not in source:
            yield f"{module} has no option {word}"


def variables() -> set[str]:
    """Of the environment, all that are read."""
    return {f"{field.validation_alias or f'VIDEO2LORA_{one.upper()}'}" for one, field in Where.model_fields.items()}


def wrong_variable(name: str) -> Iterator[str]:
    """Only ours are known."""
    known = variables()
    if name.startswith("VIDEO2LORA_") and name not in known and not (name.endswith("_") and any(one.startswith(name) for one in known)):
        yield f"no variable {name} in infra/config.py"


def wrong_yaml(text: str) -> Iterator[str]:
    """A recipe, a sweep or a prompt set. Kubernetes' objects have tests of their own (tests/k8s)."""
    for found in yaml.safe_load_all(text):
        if "apiVersion" in found:
            continue
        try:
            if "changes" in found:
                runs_of(checked(Sweep, found, where="sweep"), where="sweep")
            else:
                checked(PromptSet if "groups" in found else Recipe, found, where="yaml")
        except BadInputError as error:
            yield str(error)


def wrong_python(text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield f"not Python: {error}"
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in FOLDERS:
            continue
        found = importlib.util.find_spec(node.module or "")
        source = Path(found.origin).read_text() if found and found.origin else ""
        yield from (f"{node.module} has no {one.name}" for one in node.names if not re.search(rf"\b{one.name}\b", source))


def wrong_setting(span: str) -> Iterator[str]:
    """`section.setting`, where the section is one of a recipe."""
    first, *names = span.split(":")[0].split(".")
    if first not in Recipe.model_fields or not names or not all(re.fullmatch(r"[a-z0-9_]+", name) for name in names) or names == ["py"]:
        return
    kinds = [Recipe]
    for name in (first, *names):
        kinds = [inner for kind in kinds if name in kind.model_fields for inner in [kind.model_fields[name].annotation]]
        if not kinds:
            yield f"{span}: a recipe has no such setting"
            return
        kinds = [model for kind in kinds for model in _models(kind)]


def _models(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for inner in get_args(kind) for model in _models(inner)]


def wrong_path(span: str) -> Iterator[str]:
    """Of a file of ours."""
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", span) and span.split("/")[0] in FOLDERS and not (ROOT / span).exists():
        yield f"{span}: no such file"


def wrong_names(text: str) -> Iterator[str]:
    """Of Python files, wherever they are named without their folder."""
    there = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    yield from (f"{name}: no file of this name" for name in re.findall(r"(?<![\w/.])\w+\.py\b", text) if name not in there)


def wrong_link(link: str, page: Path) -> Iterator[str]:
    if re.match(r"[a-z]+:", link):
        return
    path, _, anchor = link.partition("#")
    target = (page.parent / path) if path else page
    if not target.exists():
        yield f"{link}: no such file"
    elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text()):
        yield f"{link}: no such heading"


def anchors(text: str) -> set[str]:
    """Headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
