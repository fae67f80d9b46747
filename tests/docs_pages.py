"""README.md and docs/*.md as tests read them: fences, commands, code spans and links. `docs_mistakes` says what is wrong with them.

**The rule.** A fence without a language, or of console, holds commands of `PROGRAMS`, one a line, or on lines that begin with `$ `, and
then the others are output; what is no command has a language (`text`). A fence whose info string has the word `run` (`console run`) is
really run by `test_docs_run.py`, after those above it on its page, and must end with exit code 0. Every other one is only parsed: a
command of ours as the command line reads it, its recipe and variables too; make's by its target, python's by its module and options,
kubectl's by its verb and options. Words in CAPITALS stand for what the reader has. YAML must be settings that a recipe, sweep or prompt
set takes, or an object of Kubernetes; Python must parse, and what it imports of ours be there.

Not run are commands that need what a test has not: a cluster, a GPU, weights or files of others, or many minutes.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELLS = ("", "console")
OURS = "video2lora"
CHECKED = (OURS, "make", "python", "kubectl", "docker", "export")
OTHERS = ("base64", "cat", "cd", "cp", "git", "head", "helm", "less", "ls", "mkdir", "mlflow", "mv", "pip", "sed", "source")  # not checked
PROGRAMS = (*CHECKED, *OTHERS)
FOLDERS = ("video2lora", "infra", "pipeline", "teacher", "training", "k8s", "tests", "benchmarks", "docs")
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)|<(?:img|source)[^>]* src(?:set)?=\"([^\"]+)\"")
HERE_DOCUMENT = re.compile(r"<<'(\w+)'([^\n]*)\n.*?^\1$", flags=re.DOTALL | re.MULTILINE)
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)?")


@dataclass(frozen=True)
class Fence:
    """A fenced block: the words of its info string, and its text."""

    info: tuple[str, ...]
    text: str

    @property
    def language(self) -> str:
        return self.info[0] if self.info else ""

    @property
    def is_run(self) -> bool:
        return "run" in self.info[1:]


def fences(text: str) -> list[Fence]:
    return [Fence(tuple(info.split()), body) for info, body in FENCE.findall(text)]


def commands(fence: Fence) -> list[str]:
    """Its command lines, joined where they go on; none where its language says that it holds something else."""
    if fence.language not in SHELLS:
        return []
    text = HERE_DOCUMENT.sub(r"\2", fence.text).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return lines


def simple_commands(line: str) -> list[list[str]]:
    """A line's commands as words, without comments, redirections and what joins them."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    found: list[list[str]] = [[]]
    try:
        for word in words:
            if word in ("&&", "||", ";", "|", "&"):
                found.append([])
            else:
                found[-1].append(word)
    except ValueError:  # a quotation mark that is never closed: no command
        return []
    return [one[: next((i for i, word in enumerate(one) if word in (">", ">>", "<")), len(one))] for one in found if one]


def spans(text: str) -> list[str]:
    """Code within the text, not in fences."""
    return [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]


def links(text: str) -> list[str]:
    return ["".join(found) for found in LINK.findall(FENCE.sub("", text))]


def program_of(words: list[str]) -> str:
    return next((word.rsplit("/", 1)[-1] for word in words if not re.match(r"[A-Z_0-9]+=", word)), "")
