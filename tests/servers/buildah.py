"""infra/Dockerfile, really built: by Buildah, from a Debian with Python 3.11 that `fetch_debian.sh debian` unpacked. Nothing is pulled.

Only as root: images have files of several owners. What pip needs to reach the registry goes in as it is on this machine: certificates,
settings, folders of wheels.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
UNPACKED, DEBIAN = ROOT / ".venv" / "buildah", ROOT / ".venv" / "debian"
BASE = "localhost/debian"
CERTIFICATES = "/etc/ssl/certs"
TOLD = ("index-url", "find-links", "timeout", "trusted-host")  # of pip's settings
DEADLINE_S = 1500  # a build; 2 minutes on an idle machine


def program() -> str | None:
    own = UNPACKED / "usr" / "bin" / "buildah"
    return str(own) if own.exists() else shutil.which("buildah")


def is_there() -> bool:
    return os.geteuid() == 0 and program() is not None and (DEBIAN / "usr" / "bin" / "python3.11").exists()


@dataclass(frozen=True)
class Buildah:
    """Images and containers in a folder of their own."""

    folder: Path

    def __call__(self, command: str, *arguments: str, deadline_s: float = 300) -> str:
        """Its standard output. Raises RuntimeError with the end of what it said."""
        if program() is None:
            raise RuntimeError("Buildah is not here: `make buildah debian` fetches it and what it builds from (needs Debian or Ubuntu)")
        whole = [program() or "", "--root", str(self.folder / "images"), "--runroot", str(self.folder / "run"), "--storage-driver", "vfs"]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "TMPDIR": str(self.folder), "BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(
            [*whole, command, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=deadline_s, check=False
        )
        if done.returncode:
            raise RuntimeError(f"buildah {command} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def build(self, target: str, **arguments: str) -> str:
        """The image of a target of infra/Dockerfile; `arguments` are its build arguments."""
        name = f"localhost/video2lora-{target}"
        settings, mounted = _pip_settings()
        (self.folder / "pip.conf").write_text(settings)
        given = [word for one, value in {"BASE": BASE, **arguments}.items() for word in ("--build-arg", f"{one}={value}")]
        given += [word for path in (CERTIFICATES, *mounted) for word in ("--volume", f"{path}:{path}:ro")]
        given += ["--secret", f"id=pip,src={self.folder / 'pip.conf'}", "--file", "infra/Dockerfile", "--target", target, "--tag", name]
        self("build", *given, ".", deadline_s=DEADLINE_S)
        return name

    def settings(self, image: str) -> dict[str, Any]:
        """User, environment, entry point, labels of an image."""
        return dict(json.loads(self("inspect", "--type", "image", image))["OCIv1"]["config"])

    @contextmanager
    def started(self, image: str) -> Iterator[tuple[str, Path]]:
        """A container's name and its root, for the block."""
        name = self("from", image, deadline_s=300).strip()
        try:
            yield name, Path(self("mount", name).strip())
        finally:
            self("rm", name)

    def run(self, container: str, *command: str) -> str:
        """What a command says in a container, as the image's user."""
        return self("run", container, "--", *command, deadline_s=300)


@contextmanager
def buildah(folder: Path) -> Iterator[Buildah]:
    """With the image BASE in it. The folder, where images take gigabytes, is removed after the block."""
    one = Buildah(folder)
    policy = folder / ".config" / "containers" / "policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text('{"default": [{"type": "reject"}], "transports": {"containers-storage": {"": [{"type": "insecureAcceptAnything"}]}}}')
    (folder / "Dockerfile").write_text("FROM scratch\nADD . /\n")
    try:
        one("build", "--file", str(folder / "Dockerfile"), "--tag", BASE, str(DEBIAN), deadline_s=300)
        yield one
    finally:
        shutil.rmtree(folder)


def _pip_settings() -> tuple[str, list[str]]:
    """This machine's, as a pip.conf, and the folders that they name."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True, timeout=300).stdout
    values = {}
    for line in listed.splitlines():  # those of the environment come first, and count
        name, _, value = line.partition("=")
        values.setdefault(name.rsplit(".", 1)[1], str(ast.literal_eval(value)))
    told = {name: values[name] for name in TOLD if name in values} | {"cert": f"{CERTIFICATES}/ca-certificates.crt"}
    folders = [word for word in told.get("find-links", "").split() if os.path.isdir(word)]
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in told.items()), folders
