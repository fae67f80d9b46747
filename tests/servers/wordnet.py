"""WordNet 3.0's database, for tests of WUPS: the folder that `fetch_debian.sh wordnet` fills, else the machine's."""

from pathlib import Path

UNPACKED = Path(__file__).parents[2] / ".venv" / "wordnet" / "usr" / "share" / "wordnet"
INSTALLED = Path("/usr/share/wordnet")


def is_there() -> bool:
    return any((place / "data.noun").is_file() for place in (UNPACKED, INSTALLED))


def folder() -> str:
    """Raises RuntimeError where there is none."""
    for place in (UNPACKED, INSTALLED):
        if (place / "data.noun").is_file():
            return str(place)
    raise RuntimeError("WordNet is not here: `make wordnet` fetches it (needs Debian or Ubuntu, no root)")
