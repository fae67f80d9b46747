"""What could not be sent lies in storage until it is, whoever wrote it and whoever sends it."""

from pathlib import Path

import pytest

from infra.outbox import Outbox


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    root = str(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")
    return f"{root}/tracking/cafe"


def test_what_is_kept_is_there_until_it_is_said_to_be_sent(folder: str) -> None:
    assert Outbox(folder).read() == (None, {})
    first, second = Outbox(folder), Outbox(folder)
    identity, kept = first.open()
    assert kept == {} and second.open() == (identity, {})
    numbers = [first.keep([{"n": 1}, {"n": 2}]), second.keep([{"n": 3}]), first.keep([{"n": 3}])]  # neither knows of the other's
    assert Outbox(folder).open() == (identity, dict(zip(numbers, [[{"n": 1}, {"n": 2}], [{"n": 3}], [{"n": 3}]], strict=True)))
    second.sent(numbers[:2])
    assert Outbox(folder).read() == (identity, {numbers[2]: [{"n": 3}]})
    first.sent(numbers[2:])
    assert Outbox(folder).read() == (identity, {})
