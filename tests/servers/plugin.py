"""Fixtures of the servers, and the rule of the tests that need a program of Debian's: where it is not, they are left out in so many words,
or with V2L_REQUIRE_CEPH=1 (CI) they fail."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.servers import buildah as buildah_programs
from tests.servers import ceph as ceph_programs
from tests.servers import chromium as chromium_program
from tests.servers import postgres as postgres_programs
from tests.servers import prometheus as prometheus_programs
from tests.servers import wordnet as wordnet_files
from tests.servers.buildah import Buildah, buildah
from tests.servers.ceph import ceph
from tests.servers.child import S3Server
from tests.servers.fault_proxy import FaultProxy, fault_proxy
from tests.servers.ministack import ministack
from tests.servers.postgres import postgres

NEEDED = {
    "ceph_server": (ceph_programs, "Ceph's S3 gateway", "make ceph"),
    "database": (postgres_programs, "PostgreSQL", "make postgres"),
    "chromium": (chromium_program, "Chromium", "make chromium"),
    "wordnet": (wordnet_files, "WordNet", "make wordnet"),
    "images": (buildah_programs, "Buildah, which needs root", "make buildah debian"),
    "promtool": (prometheus_programs, "Prometheus", "make prometheus"),
}
LEFT_OUT = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("V2L_REQUIRE_CEPH"):
        return
    config.stash[LEFT_OUT] = []
    for fixture, (programs, name, fetched_by) in NEEDED.items():
        needing = [item for item in items if fixture in getattr(item, "fixturenames", ())]
        if needing and not programs.is_there():
            items[:] = [item for item in items if item not in needing]
            config.hook.pytest_deselected(items=needing)
            config.stash[LEFT_OUT].append(f"{len(needing)} tests on {name}, which is not here (`{fetched_by}` fetches it on Debian)")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for line in config.stash.get(LEFT_OUT, []):
        terminalreporter.write_line(f"LEFT OUT: {line}")


def _clear(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def ministack_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with ministack(tmp_path_factory.mktemp("ministack")) as server:
        yield server


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture
def database() -> Iterator[str]:
    """The address of an empty database on a PostgreSQL of the test's own, with user and password."""
    with postgres() as address:
        yield address


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What playwright's `chromium.launch` is to be given: executable_path, env, args."""
    return chromium_program.launched_with(tmp_path_factory.mktemp("chromium"))


@pytest.fixture(scope="session")
def wordnet() -> str:
    """The folder of WordNet's database: what VIDEO2LORA_WORDNET is to say."""
    return wordnet_files.folder()


@pytest.fixture(scope="session")
def promtool() -> str:
    """Where it is; where it is, the server is too (`tests.servers.prometheus.running`)."""
    return prometheus_programs.program("promtool") or "promtool"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Builds images, from a Debian with Python 3.11."""
    with buildah(tmp_path_factory.mktemp("buildah")) as one:
        yield one


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[S3Server], str]:
    """`use(server)` points this process and those it starts at a server; the address of a new bucket there."""

    def point(server: S3Server) -> str:
        _clear(monkeypatch)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        return server.make_bucket()

    return point


@pytest.fixture
def bucket(ministack_server: S3Server, use: Callable[[S3Server], str]) -> str:
    """The address of a new bucket on ministack, which the environment leads to."""
    return use(ministack_server)


@pytest.fixture
def ceph_bucket(ceph_server: S3Server, use: Callable[[S3Server], str]) -> str:
    """The same on Ceph's gateway."""
    return use(ceph_server)


@pytest.fixture(scope="session")
def ministack_proxy(ministack_server: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(ministack_server.endpoint) as between:
        yield between


@pytest.fixture
def proxy(bucket: str, ministack_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """A fault proxy before ministack and `bucket`, which the environment leads to; without faults yet."""
    ministack_proxy.forget()
    monkeypatch.setenv("AWS_ENDPOINT_URL", ministack_proxy.endpoint)
    return ministack_proxy
