"""An OpenAI-compatible endpoint over real sockets: order, retries, what becomes a reject, and that no secret comes to light."""

import base64
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from infra.config import TeacherSettings
from infra.errors import BadInputError, StageFailedError
from teacher import endpoint
from teacher.engine import EngineDiedError, EngineOptions, Refused, Written, start
from teacher.models import find_model
from teacher.write_targets import Plan, WriteTargets
from tests.teacher.chat_server import ChatServer, chat_server
from tests.teacher.clips_of_noise import noise_clip

KEY = "sk-very-secret-4711"
SETTINGS = TeacherSettings(model="org/model", served_by="endpoint", max_tokens=17)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with chat_server() as one:
        yield one


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_S", 0.001)


def ask(server: ChatServer, *clips: Any, deadline_s: float = 20.0) -> list[list[Written | Refused]]:
    engine = start(find_model(SETTINGS), SETTINGS, EngineOptions(endpoint=server.url, deadline_s=deadline_s), n_frames=3)
    try:
        return engine.write(clips)
    finally:
        engine.stop()


def test_frames_go_as_pictures_and_the_first_prompt_of_a_video_before_its_others(server: ChatServer) -> None:
    clips = [noise_clip(f"video-{i}", [f"Say {n}." for n in range(4)]) for i in range(5)]
    results = ask(server, *clips)
    assert results == [[Written(f"You said: Say {n}.", 3, "stop", 40) for n in range(4)]] * 5
    for clip in clips:
        video = base64.b64encode(clip.jpegs[0]).decode()[-24:]
        first = server.ended.index((video, "Say 0."))
        others = [i for i, (of, prompt) in enumerate(server.asked) if of == video and prompt != "Say 0."]
        assert len(others) == 3
        assert all(server.asked.index((video, "Say 0.")) < i for i in others)
        assert first >= 0
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("org/model", 17, 0.0)
    parts = body["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"] * 3 + ["text"]
    assert parts[0]["text"].endswith("Frame from 00:00:")
    jpegs = [base64.b64decode(part["image_url"]["url"].removeprefix("data:image/jpeg;base64,")) for part in parts[1::2]]
    assert jpegs in [list(clip.jpegs) for clip in clips]


@pytest.mark.usefixtures("impatient")
def test_a_busy_endpoint_and_a_broken_connection_are_tried_again(server: ChatServer) -> None:
    ((busy, broken),) = ask(server, noise_clip("video", ["Be busy twice.", "Break off twice."]))
    assert isinstance(busy, Written) and isinstance(broken, Written)
    assert server.tries == {"Be busy twice.": 3, "Break off twice.": 3}


def test_what_the_endpoint_will_not_do_is_one_prompts_reject_and_says_no_secret(server: ChatServer) -> None:
    ((refused, long, filtered, nothing, unfinished, well),) = ask(
        server, noise_clip("video", ["Refuse.", "Be too long.", "Filter.", "Say nothing.", "Go on.", "Say it."])
    )
    assert refused == Refused("teacher_error", "400: Bearer … may not see … at …/chat/completions at all")
    assert isinstance(long, Refused) and long.reason == "prompt_too_long"
    assert isinstance(filtered, Refused) and "content_filter" in filtered.detail
    assert isinstance(nothing, Refused) and nothing.reason == "teacher_error"
    assert isinstance(unfinished, Written) and unfinished.finish_reason == "length"
    assert isinstance(well, Written)
    assert set(server.tries.values()) == {1}, "what is refused is not asked again"


@pytest.mark.usefixtures("impatient")
def test_a_request_past_its_deadline_is_a_reject_in_the_end(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "N_TRIES", 2)
    ((well, slow),) = ask(server, noise_clip("video", ["Say it.", "Be slow."]), deadline_s=0.5)
    assert isinstance(well, Written)
    assert isinstance(slow, Refused) and slow.reason == "teacher_error"
    assert "no answer in 2 tries of 0.5 s" in slow.detail
    assert server.tries["Be slow."] == 2


@pytest.mark.usefixtures("impatient")
def test_a_wrong_key_ends_the_run_and_is_not_shown(server: ChatServer) -> None:
    with pytest.raises(
        BadInputError, match=r"refuses the key \(401\): wrong key …; see VIDEO2LORA_TEACHER_ENDPOINT, OPENAI_API_KEY"
    ) as caught:
        ask(server, noise_clip("video", ["Know no key."]))
    assert KEY not in str(caught.value)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("prompt", "error", "says"),
    [
        ("Stay busy.", StageFailedError, r"the endpoint stays busy, 6 tries: too many requests; .* VIDEO2LORA_TEACHER_MAX_NUM_SEQS"),
        ("Be out of credit.", BadInputError, r"the endpoint wants to be paid \(402\): Insufficient credits"),
        ("Be over quota.", BadInputError, r"gives no more on this account \(429\): You exceeded"),
        ("Know no such field.", BadInputError, r"takes no such request \(400\): Unsupported parameter: 'max_tokens'"),
        ("Be a page.", BadInputError, r"is no chat endpoint, but says '<html>Please log in\.</html>'; see VIDEO2LORA_TEACHER_ENDPOINT"),
    ],
)
def test_what_ails_the_endpoint_is_no_prompts_reject(server: ChatServer, prompt: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ask(server, noise_clip("video", [prompt]))
    assert server.tries[prompt] == (6 if prompt == "Stay busy." else 1)


def test_an_endpoint_that_counts_no_tokens_is_taken_at_its_word(server: ChatServer) -> None:
    assert ask(server, noise_clip("video", ["Count nothing."])) == [[Written("You said: Count nothing.", 0, "stop", 0)]]


@pytest.mark.usefixtures("impatient")
def test_an_endpoint_out_of_reach_is_a_dead_engine(server: ChatServer) -> None:
    server.is_down = True
    with pytest.raises(EngineDiedError, match="out of reach after 6 tries: no capacity"):
        ask(server, noise_clip("video", ["Say it."]))
    nobody = ChatServer()
    nobody.url = "http://127.0.0.1:9/v1"
    with pytest.raises(EngineDiedError, match="APIConnectionError"):
        ask(nobody, noise_clip("video", ["Say it."]))


def test_what_an_endpoint_cannot_do_is_said_at_once() -> None:
    with pytest.raises(BadInputError, match="VIDEO2LORA_TEACHER_ENDPOINT is not set"):
        start(find_model(SETTINGS), SETTINGS, EngineOptions(), n_frames=3)
    with pytest.raises(BadInputError, match="expected the key in OPENAI_API_KEY") as caught:
        start(find_model(SETTINGS), SETTINGS, EngineOptions(endpoint="http://user:password@127.0.0.1:9/v1"), n_frames=3)
    assert "password" not in str(caught.value)
    asking = SETTINGS.model_copy(update={"logprobs": 5})
    with pytest.raises(BadInputError, match=r"teacher\.logprobs: got 5"):
        start(find_model(asking), asking, EngineOptions(endpoint="http://127.0.0.1:9/v1"), n_frames=3)


def actor(server: ChatServer) -> WriteTargets:
    options = EngineOptions(endpoint=server.url)
    return WriteTargets(Plan(find_model(SETTINGS), SETTINGS, options, n_frames=3), writer=None)  # type: ignore[arg-type]


def video(video_id: str, *texts: str) -> dict[str, Any]:
    clip = noise_clip(video_id, texts)
    return {**asdict(clip), "prompts": [asdict(prompt) for prompt in clip.prompts]}


@pytest.mark.usefixtures("impatient")
def test_a_video_that_kills_every_engine_is_rejected_and_the_others_of_its_block_are_not(server: ChatServer) -> None:
    """Any engine that dies is replaced the same way; here it is the cheap one."""
    writing = actor(server)
    rows, rejects = writing.write([video("a", "Say a."), video("b", "Be down.", "Say b."), video("c", "Say c.")])
    writing.stop()
    assert [row["video_id"] for row in rows] == ["a", "c"]
    assert [(one["key"].split("/")[0], one["reason"]) for one in rejects] == [("b", "teacher_error")] * 2
    assert writing.measures.n_starts == 1 + 2 + 1


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_dies_of_whatever_it_is_asked_ends_the_run(server: ChatServer) -> None:
    writing = actor(server)
    server.is_down = True
    with pytest.raises(StageFailedError, match="3 videos one after the other killed an engine each"):
        writing.write([video(name, "Say it.") for name in "abcdef"])
    writing.stop()


@pytest.mark.usefixtures("impatient")
def test_what_was_asked_and_what_it_cost_is_summed_up(server: ChatServer) -> None:
    writing = actor(server)
    for name in "ab":
        writing.write([video(name, "Say it.", "Go on.", "Refuse.")])
    writing.stop()
    found = writing.measures
    assert (found.n_videos, found.n_prompts, found.n_tokens, found.n_prompt_tokens, found.n_starts) == (2, 6, 12, 160, 1)
    assert found.video_s == pytest.approx(2 * 2.8)
    assert found.engine_s > 0 and found.waiting_s > 0 and found.startup_s > 0
