"""RAY_ADDRESS, before Ray is asked to connect: it would try for minutes."""

import socket
import threading
import time

import pytest

from infra import cluster
from infra.config import Where
from infra.errors import StageFailedError
from tests.servers.child import free_port


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no-such-host.invalid:6379", "127.0.0.1:99999"])
def test_where_nobody_answers_it_is_said_and_what_to_do(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "REACH_S", 0.0)
    with (
        pytest.raises(StageFailedError, match=r"RAY_ADDRESS=.*no Ray cluster answers there.*unset RAY_ADDRESS"),
        cluster.cluster(Where(ray_address=address.format(port=free_port()))),
    ):
        pass


def test_a_head_that_is_being_started_is_waited_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    port, listening = free_port(), []

    def listen() -> None:
        time.sleep(0.5)
        listening.append(socket.create_server(("127.0.0.1", port)))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        cluster._reach(f"127.0.0.1:{port}")
    finally:
        thread.join()
        listening[0].close()
    assert capsys.readouterr().err == f"Ray (127.0.0.1:{port}): nobody answers there yet; trying for 30 s\n"


@pytest.mark.parametrize("address", ["local", "auto", "ray://head:10001", "http://head:8265"])
def test_other_forms_of_an_address_are_left_to_ray(address: str) -> None:
    cluster._reach(address)
