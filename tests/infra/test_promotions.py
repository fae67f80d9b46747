"""Who is champion: one log says so, whoever decides must have seen all of it, and MLflow's registry says the same."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from infra import promotions, registry
from infra.config import Recipe, TrainingSettings, Where
from infra.errors import BadInputError, SupersededError
from infra.hypernetworks import adapters_digest, identity
from infra.objects import write_new
from infra.tracking import open_run, tracking_uri

Command = Callable[..., Any]
BY_GATE = {"why": "as good as ever", "evidence": {}}
NETWORK = {"n_layers": 4, "r": 3}


def a_hypernetwork(root: str, name: str, *, vlm: str = "some/where/tiny") -> str:
    """Its weights are told by its name."""
    config = {"hypernetwork": NETWORK, "weights_sha256": f"weights of {name}", "metadata": {"vlm": {"model": vlm}}}
    write_new(f"{root}/hypernetworks/{name}/config.json", json.dumps(config).encode())
    return name


@pytest.fixture
def root(tmp_path: Path) -> str:
    for name in "abc":
        a_hypernetwork(str(tmp_path), name)
    a_hypernetwork(str(tmp_path), "other", vlm="other")
    return str(tmp_path)


def promoted(root: str, name: str, *, by: str = "run-1") -> promotions.Champion:
    seen = promotions.standing(root, promotions.vlm_of(root, name))
    return promotions.promote(root, name, expected=seen.n_entries, verdict=BY_GATE, by=by)


def champion(root: str, vlm: str = "tiny") -> str | None:
    found = promotions.champion(root, vlm)
    return None if found is None else found.hypernetwork


def test_the_last_one_promoted_is_champion_of_its_vlm(root: str) -> None:
    assert promotions.standing(root, "tiny") == promotions.Standing(0, ()) and champion(root) is None
    a = promoted(root, "a")
    assert (a.vlm, a.folder, a.weights_sha256, a.by) == ("tiny", f"{root}/hypernetworks/a", "weights of a", "run-1")
    assert a.adapters_digest == adapters_digest(identity(a.folder, named_by="test"))
    assert champion(root, "other") is None
    promoted(root, "other")
    promoted(root, "b")
    promotions.keep(root, "c", expected=3, verdict=BY_GATE, by="run-3", report="tiny-1a")
    assert (champion(root), champion(root, "other")) == ("b", "other")
    assert [(one["kind"], one["hypernetwork"], one["report"]) for one in promotions.history(root)] == [
        ("promote", "a", None), ("promote", "other", None), ("promote", "b", None), ("keep", "c", "tiny-1a"),
    ]  # fmt: skip
    assert promotions.vlms(root) == ["other", "tiny"]


def test_what_is_champion_already_is_not_entered_again(root: str) -> None:
    """By hand that is what was wanted. A run's verdict was about the champion before: it learns that it was overtaken."""
    promoted(root, "a")
    again = promotions.promote(root, "a", expected=0, verdict=BY_GATE)
    assert again.by == "run-1" and promoted(root, "a", by="run-2").by == "run-1"
    with pytest.raises(SupersededError, match="a became champion by run-1"):
        promotions.promote(root, "a", expected=0, verdict=BY_GATE, by="run-2")
    assert len(promotions.history(root)) == 1


def test_a_decision_that_was_overtaken_is_refused(root: str) -> None:
    promoted(root, "a")
    seen = promotions.standing(root, "tiny")
    promotions.keep(root, "b", expected=seen.n_entries, verdict=BY_GATE, by="run-2")
    promoted(root, "other")
    promotions.keep(root, "b", expected=seen.n_entries, verdict=BY_GATE, by="run-2")  # neither changed this VLM's champion
    promoted(root, "c", by="run-4")
    for decide in (promotions.promote, promotions.keep):
        with pytest.raises(SupersededError, match=r"c became champion by run-4 at .*nothing was decided about b"):
            decide(root, "b", expected=seen.n_entries, verdict=BY_GATE, by="run-2")
    assert champion(root) == "c"


def test_of_decisions_made_at_once_one_holds(root: str) -> None:
    def decide(name: str) -> str:
        try:
            return promotions.promote(root, name, expected=0, verdict=BY_GATE, by=f"run-{name}").hypernetwork
        except SupersededError:
            return ""

    with ThreadPoolExecutor(3) as pool:
        done = [name for name in pool.map(decide, "abc") if name]
    assert done == [champion(root)] and len(promotions.history(root)) == 1


def test_a_rollback_goes_back_one_step_at_a_time(root: str) -> None:
    for name in "abc":
        promoted(root, name)
    gone, now = promotions.rollback(root, "tiny")
    assert (gone.hypernetwork, now.hypernetwork, champion(root)) == ("c", "b", "b")
    promotions.rollback(root, "tiny")
    seen = promotions.standing(root, "tiny")
    assert champion(root) == "a" and seen.rolled_back == {"weights of b", "weights of c"}
    with pytest.raises(BadInputError, match="VLM tiny: a is the first champion, and there is none before it"):
        promotions.rollback(root, "tiny")
    with pytest.raises(BadInputError, match="VLM none: it has no champion"):
        promotions.rollback(root, "none")
    promoted(root, "c")
    assert promotions.standing(root, "tiny").rolled_back == {"weights of b"}
    assert promotions.rollback(root, "tiny")[1].hypernetwork == "a"


def test_a_rollback_to_what_is_gone_or_another_by_now_is_refused(root: str, tmp_path: Path) -> None:
    for name in "ab":
        promoted(root, name)
    config = tmp_path / "hypernetworks/a/config.json"
    config.write_text(config.read_text().replace("weights of a", "others"))
    with pytest.raises(BadInputError, match="holds other weights now"):
        promotions.rollback(root, "tiny")
    config.unlink()
    with pytest.raises(BadInputError, match="holds no hypernetwork"):
        promotions.rollback(root, "tiny")
    assert champion(root) == "b"


@pytest.mark.parametrize(
    ("name", "message"),
    [("d", "holds no hypernetwork"), ("../a", "expected the name of a folder"), ("begun", "its training has not ended")],
)
def test_what_cannot_be_champion(root: str, name: str, message: str) -> None:
    a_hypernetwork(root, "begun")
    write_new(f"{root}/hypernetworks/begun/made.json", b"{}")
    with pytest.raises(BadInputError, match=message):
        promotions.promote(root, name, expected=0, verdict=BY_GATE)
    assert not promotions.history(root)


def test_by_hand(root: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO2LORA_DATA", root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # away, and nothing here needs it
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "nothing was promoted yet" in command("history").out
    assert command("rollback").code == 3
    said = command("promote", "a", "--why", "the gate was closed")
    assert said.code == 0 and said.out == "a is the champion of VLM tiny, by hand, without the gate: the gate was closed\n"
    assert "is the champion of VLM tiny already" in command("promote", "a").out
    assert command("promote", "b").out.endswith("before it: a\n")
    assert command("promote", "d").err.startswith("error: promotions: ")
    command("promote", "other")
    assert "say which with --vlm" in command("rollback").err
    assert command("rollback", "--vlm", "tiny").out.startswith("a is the champion of VLM tiny again, ")
    table = command("history").out
    assert "the gate was closed" in table and "back from b" in table
    entries = json.loads(command("history", "--json").out)
    assert [one["kind"] for one in entries] == ["promote", "promote", "promote", "rollback"]
    assert all(one["by"] == "hand" and "@" in one["who"] for one in entries)


# MLflow


@pytest.fixture
def where(root: str, empty_database: Path) -> Where:
    shutil.copy(empty_database, Path(root, "mlflow.db"))
    return Where(data=root)


def register(where: Where, name: str) -> None:
    """As training does, when it publishes."""
    run = open_run(where, Recipe(training=TrainingSettings(n_steps=1 + ord(name))))
    assert run is not None
    run.register_model(folder="hypernetwork", tags={"weights": f"weights of {name}"})
    run.end()


def versions(where: Where) -> dict[str, ModelVersion]:
    found = MlflowClient(tracking_uri=tracking_uri(where)).search_model_versions("name = 'video2lora-tiny'")
    return {version.tags["weights"].rsplit(" ", 1)[-1]: version for version in found}


def by_alias(where: Where) -> dict[str, str]:
    client = MlflowClient(tracking_uri=tracking_uri(where))
    aliases = client.get_registered_model("video2lora-tiny").aliases
    of = {str(version.version): name for name, version in versions(where).items()}
    return {alias: of[str(version)] for alias, version in aliases.items()}


CLAIMED = {
    "value": 0.0123, "low": -0.004, "high": 0.03, "margin": 0.05, "alpha": 0.05, "p_noninferior_holm": 0.0004, "holds": True,
    "n_questions": 540, "n_videos": 60, "n_seeds": 3,
}  # fmt: skip
SAID = {"why": "w" * 9000, "evidence": {"against_champion": {"toy: qa": CLAIMED, "gone": None}}}


def test_the_registry_says_what_the_log_says(where: Where, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path(where.data, "mlflow.db").read_bytes()
    registry.mirror(where)  # nothing was decided, and MLflow is not even asked
    assert Path(where.data, "mlflow.db").read_bytes() == before
    for name in "ab":
        register(where, name)
    promoted(where.data, "a", by="run-1")
    registry.mirror(where)
    assert by_alias(where) == {"champion": "a", "challenger": "a"}
    promotions.keep(where.data, "b", expected=1, verdict=SAID, by="run-2", report="tiny-1a")
    registry.mirror(where)
    assert by_alias(where) == {"champion": "a", "challenger": "b"}
    tags = versions(where)["b"].tags
    assert tags["verdict"].startswith("kept out 20") and tags["verdict"].endswith(" by run-2")
    assert tags["why"] == "w" * 5000 and tags["report"] == "tiny-1a"
    assert tags["gate.toy_ qa.against_champion"] == (
        "not worse: +0.012 [-0.004, +0.030], margin 0.05, p 0.0004 at 0.05, 540 questions of 60 clips, 3 seeds"
    )
    assert tags["gate.gone.against_champion"] == "nothing to compare"
    promoted(where.data, "b")
    promotions.rollback(where.data, "tiny")
    registry.mirror(where)
    assert by_alias(where) == {"champion": "a", "challenger": "b"}
    tags = {name: version.tags for name, version in versions(where).items()}
    assert tags["b"]["verdict"].startswith("rolled back from 20") and tags["a"]["verdict"].startswith("champion again 20")
    assert tags["b"]["why"] == "as good as ever" and not any(key.startswith("gate.") for key in tags["b"])
    assert "registry" not in capsys.readouterr().err


def test_a_registry_that_was_away_is_told_later(where: Where, capsys: pytest.CaptureFixture[str]) -> None:
    register(where, "a")
    promoted(where.data, "a")
    with away(where):
        registry.mirror(where)
        promoted(where.data, "b")
        registry.mirror(where)
    assert capsys.readouterr().err.count("is away") == 2
    registry.mirror(where)
    assert by_alias(where) == {}, "the champion is b now, of which there is no version"
    assert "video2lora-tiny has no version yet with the weights of b" in capsys.readouterr().err
    register(where, "b")
    registry.mirror(where)
    assert by_alias(where) == {"champion": "b", "challenger": "b"}


@contextmanager
def away(where: Where) -> Iterator[None]:
    path = Path(where.data, "mlflow.db")
    kept = path.read_bytes()
    path.write_bytes(b"no database any more" * 1000)
    yield
    path.write_bytes(kept)
