"""Every command, setting, path, link and variable in README.md and docs/ is real. What counts as a command: `docs_pages`."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.config import Recipe
from tests import docs_mistakes as mistakes
from tests import docs_pages as pages
from tests.docs_pages import PAGES, Fence
from tests.k8s.built import objects

KUBECTL = str(Path(sys.executable).parent / "kubectl")
NAMED = {"svc": "Service", "cronjob": "CronJob", "rayjob": "RayJob", "deployment": "Deployment", "statefulset": "StatefulSet"}
OF_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@OF_PAGE
def test_what_stands_in_fences_is_real(page: Path) -> None:
    assert [said for fence in pages.fences(page.read_text()) for said in mistakes.wrong_in_fence(fence)] == []


@OF_PAGE
def test_commands_within_the_text_are_there(page: Path) -> None:
    found = pages.spans(page.read_text())
    assert [said for span in found if span.startswith("video2lora ") for said in mistakes.wrong_span_of_ours(span)] == []
    assert [said for span in found if span.startswith("make ") for said in mistakes.wrong_make(shlex.split(span)[1:])] == []
    assert [said for span in found if span.startswith("python ") for said in mistakes.wrong_module(span.split()[1:])] == []


@OF_PAGE
def test_settings_variables_and_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text()
    found = pages.spans(text)
    assert [said for span in found for said in mistakes.wrong_setting(span)] == []
    assert [said for span in found for said in mistakes.wrong_path(span)] == []
    assert list(mistakes.wrong_names(text)) == []
    assert [said for name in re.findall(r"\bVIDEO2LORA_[A-Z0-9_]+", text) for said in mistakes.wrong_variable(name)] == []


@OF_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    assert [said for link in pages.links(page.read_text()) for said in mistakes.wrong_link(link, page)] == []


def test_every_page_is_reached_from_readme() -> None:
    reached, todo = set(), [PAGES[0]]
    while todo:
        page = todo.pop()
        reached.add(page)
        linked = [(page.parent / link.partition("#")[0]).resolve() for link in pages.links(page.read_text()) if ":" not in link]
        todo += [one for one in linked if one.suffix == ".md" and one not in reached and one.is_file()]
    assert [page.name for page in PAGES if page not in reached] == []


def test_the_page_of_recipes_names_every_section() -> None:
    (page,) = [page for page in PAGES if page.name == "recipes.md"]
    assert set(Recipe.model_fields) <= set(pages.spans(page.read_text()))


def test_the_page_of_recipes_has_every_variable_of_the_environment() -> None:
    (page,) = [page for page in PAGES if page.name == "recipes.md"]
    assert mistakes.variables() <= set(pages.spans(page.read_text()))


def kubectl_commands() -> Iterator[list[str]]:
    for page in PAGES:
        for fence in pages.fences(page.read_text()):
            for line in pages.commands(fence):
                yield from (words for words in pages.simple_commands(line) if words[:1] == ["kubectl"])


def test_kubectl_knows_its_commands_and_options() -> None:
    found = {tuple(words[1:]) for words in kubectl_commands()}
    assert found
    for words in sorted(found):
        assert list(wrong_kubectl(list(words))) == []


def wrong_kubectl(words: list[str]) -> Iterator[str]:
    """By its own help, which it prints for a command that there is, with options that there are."""
    ran = subprocess.run([KUBECTL, *words, "--help"], capture_output=True, text=True, timeout=60)
    if ran.returncode or "Examples:" not in ran.stdout:
        yield f"kubectl {shlex.join(words)}: {ran.stderr}"


def test_kubernetes_objects_that_are_named_are_there() -> None:
    there = {(one["kind"], one["metadata"]["name"]) for one in objects("dev")}
    named = [re.fullmatch(r"(?:--from=)?([a-z]+)/([a-z][\w-]*)", word) for words in kubectl_commands() for word in words]
    found = [(NAMED[one[1]], one[2]) for one in named if one and one[1] in NAMED]
    assert found and set(found) <= there


@pytest.mark.parametrize(
    ("info", "text", "says"),
    [
        ("", "video2lora frobnicate", "No such command"),
        ("", "video2lora frames --fast", "No such option"),
        ("", "video2lora internalize clip.mp4", "Missing option '--output'"),
        ("", "video2lora targets brows", "No such command"),
        ("", "video2lora reproduce tables", "is not one of"),
        ("", "video2lora frames --recipe smolvlm9", "no such file"),
        ("", "VIDEO2LORA_DATUM=x video2lora frames", "no variable VIDEO2LORA_DATUM"),
        ("", "export VIDEO2LORA_DATUM=x", "no variable VIDEO2LORA_DATUM"),
        ("console", "$ video2lora nothing\n34 rows", "No such command"),
        ("", "video2lora ls && video2lora la", "No such command"),
        ("", "make tests", "no target tests"),
        ("", "make chaos HAVOC=1", "no variable HAVOC"),
        ("", "python -m benchmarks.nothing", "no module"),
        ("", "python -m benchmarks.answering --sise 500m", "no option --sise"),
        ("", "video2lora ls\nvidoe2lora show ID", "none of the programs"),
        ("", "vidoe2lora ls", "none of the programs"),
        ("", "frames/   pictures", "a language"),
        ("text run", "frames/   pictures", "only commands"),
        ("yaml", "frames: {n_frames: 3}", "frames.n_frames"),
        ("yaml", "base: demo\nchanges: {a: {training.speed: 1}}", "training.speed"),
        ("yaml", "id: mine\nversion: 1\ngroups: {}", "version"),
        ("python", "from video2lora.api import dream", "has no dream"),
        ("python", "a +", "not Python"),
        ("", "video2lora submit stages --kubernetes", "no command stages to submit"),
    ],
)
def test_a_mistake_in_a_fence_is_found(info: str, text: str, says: str) -> None:
    (fence,) = pages.fences(f"Some words.\n\n```{info}\n{text}\n```\n")
    assert says in "\n".join(mistakes.wrong_in_fence(fence))


@pytest.mark.parametrize(
    "said",
    [
        lambda: mistakes.wrong_span_of_ours("video2lora frobnicate"),
        lambda: mistakes.wrong_span_of_ours("video2lora verify [--mend]"),
        lambda: mistakes.wrong_setting("training.speed"),
        lambda: mistakes.wrong_setting("frames.sampling.n_pictures"),
        lambda: mistakes.wrong_path("infra/nowhere.py"),
        lambda: mistakes.wrong_names("See nowhere.py and config.py."),
        lambda: wrong_kubectl(["fetch", "pods"]),
        lambda: wrong_kubectl(["get", "pods", "--quickly"]),
        lambda: mistakes.wrong_link("nowhere.md", PAGES[0]),
        lambda: mistakes.wrong_link("docs/data.md#no-such-heading", PAGES[0]),
    ],
)
def test_a_mistake_in_the_text_is_found(said: Callable[[], Iterator[str]]) -> None:
    assert len(list(said())) == 1


def test_output_and_texts_for_a_file_are_no_commands() -> None:
    assert pages.commands(Fence((), "$ video2lora ls\nvideos  3 rows\n")) == ["video2lora ls"]
    assert pages.commands(Fence(("text",), "video2lora/    the method\n")) == []
    assert pages.commands(Fence((), "cat > mine.yaml <<'END'\nframes: {}\nEND\nvideo2lora ls \\\n  videos\n")) == [
        "cat > mine.yaml ",
        "video2lora ls    videos",
    ]
