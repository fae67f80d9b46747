"""Debian's Chromium, for tests of pages. From the folder that `fetch_debian.sh chromium` fills, else the machine's.

Playwright's own browser is not among Python's packages. Unpacked, Chromium finds its libraries by LD_LIBRARY_PATH, and by a configuration
of its own the fonts: DejaVu, where a page does not name another, so that it looks the same wherever it is tested. Packages that the machine
has are not unpacked a second time.
"""

import os
import shutil
from pathlib import Path
from typing import Any

UNPACKED = Path(__file__).parents[2] / ".venv" / "chromium"
UNPACKED_PROGRAM = UNPACKED / "usr" / "lib" / "chromium" / "chromium"  # /usr/bin/chromium is a script that looks into /etc

# No sandbox: it needs what root and containers do not have. The rest keeps it from asking anything of the network.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{unpacked}</dir>
  <dir>{installed}</dir>
  <cachedir>{cache}</cachedir>
  <alias><family>sans-serif</family><prefer><family>DejaVu Sans</family></prefer></alias>
  <alias><family>serif</family><prefer><family>DejaVu Serif</family></prefer></alias>
  <alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""


def program() -> str | None:
    return str(UNPACKED_PROGRAM) if UNPACKED_PROGRAM.is_file() else shutil.which("chromium")


def is_there() -> bool:
    return program() is not None


def launched_with(folder: Path) -> dict[str, Any]:
    """What playwright's `chromium.launch` is to be given; its settings lie in `folder`. Raises RuntimeError where there is no Chromium."""
    executable = program()
    if executable is None:
        raise RuntimeError("Chromium is not here: `make chromium` fetches it (needs Debian or Ubuntu, no root)")
    environment = {**os.environ, "HOME": str(folder)}
    if executable == str(UNPACKED_PROGRAM):
        libraries = UNPACKED / "usr" / "lib" / "x86_64-linux-gnu"
        paths = [libraries, libraries / "nss", libraries / "pulseaudio", UNPACKED / "lib" / "x86_64-linux-gnu"]
        configuration = folder / "fonts.conf"
        fonts = Path("usr", "share", "fonts")
        configuration.write_text(FONTS.format(unpacked=UNPACKED / fonts, installed=Path("/") / fonts, cache=folder / "fontconfig"))
        environment |= {"LD_LIBRARY_PATH": ":".join(map(str, paths)), "FONTCONFIG_FILE": str(configuration)}
    return {"executable_path": executable, "env": environment, "args": list(ARGUMENTS)}
