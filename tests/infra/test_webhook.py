"""The webhook: posted once, tried again where that may help, and never named."""

import socket
import threading
import time

import pytest
from pydantic import SecretStr

from infra import webhook
from infra.config import Where, load_where
from infra.webhook import post
from tests.servers.child import free_port
from tests.servers.webhook import receiving

FACTS = {"run": "nightly", "verdict": "keep", "why": "déjà vu"}
SECRETS = ("very-secret", "hidden", "hooks")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "FIRST_WAIT_S", 0.01)


def test_nobody_asked(capfd: pytest.CaptureFixture[str]) -> None:
    assert post(Where(), FACTS)
    assert post(Where(webhook=SecretStr("")), FACTS), "a key of a secret that is there and empty"
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("answers", "n_requests", "delivered", "says"),
    [
        ((), 1, True, ""),
        ((503, 429), 3, True, ""),
        ((500, 500, 500), 3, False, "webhook: 127.0.0.1 did not take the verdict (HTTP 500)\n"),
        ((404,), 1, False, "webhook: 127.0.0.1 did not take the verdict (HTTP 404)\n"),
    ],
)
def test_it_is_tried_again_where_that_may_help(
    capfd: pytest.CaptureFixture[str], answers: tuple[int, ...], n_requests: int, delivered: bool, says: str
) -> None:
    with receiving(*answers) as got:
        assert post(Where(webhook=got.secret), FACTS) == delivered
    assert (got.n_requests, got.bodies) == (n_requests, [FACTS] if delivered else [])
    said = capfd.readouterr()
    assert said.err == says and not said.out


def test_nobody_there(capfd: pytest.CaptureFixture[str]) -> None:
    address = SecretStr(f"http://user:hidden@127.0.0.1:{free_port()}/hooks/very-secret")
    assert not post(Where(webhook=address), FACTS)
    said = capfd.readouterr().err
    assert said == "webhook: 127.0.0.1 did not take the verdict (URLError)\n" and not any(secret in said for secret in SECRETS)


@pytest.mark.parametrize("address", ["file:///etc/very-secret", "ftp://host/hooks", "very-secret", "http://[very-secret"])
def test_what_is_no_address_opens_nothing(capfd: pytest.CaptureFixture[str], address: str) -> None:
    assert not post(Where(webhook=SecretStr(address)), FACTS)
    said = capfd.readouterr().err
    assert said.startswith("webhook: ") and "very-secret" not in said


def test_an_address_that_http_does_not_take_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with receiving() as got:
        assert not post(Where(webhook=SecretStr(got.secret.get_secret_value().replace("?", " "))), FACTS)
    said = capfd.readouterr().err
    assert said == "webhook: 127.0.0.1 did not take the verdict (InvalidURL)\n" and got.n_requests == 0


def test_who_answers_in_no_http_is_told_of(capfd: pytest.CaptureFixture[str]) -> None:
    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"220 very-secret ESMTP\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        assert not post(Where(webhook=SecretStr(f"http://127.0.0.1:{server.getsockname()[1]}/hooks/very-secret")), FACTS)
        thread.join()
    assert capfd.readouterr().err == "webhook: 127.0.0.1 did not take the verdict (BadStatusLine)\n"


def test_a_host_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(webhook, "DEADLINE_S", 0.1)
    with receiving() as got:
        got.delay_s = 0.5
        started = time.monotonic()
        assert not post(Where(webhook=got.secret), FACTS)
    assert time.monotonic() - started < 5 and "TimeoutError" in capfd.readouterr().err


def test_the_environment_names_it_and_nothing_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO2LORA_WEBHOOK", "https://host/hooks/very-secret")
    where = load_where()
    assert "very-secret" not in f"{where} {where!r} {where.model_dump_json()}"
