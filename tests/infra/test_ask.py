"""Questions to adapters as a user asks them: what is printed is what the method answers, alone or beside its rivals."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from released import save_released

from infra.stored import vlm_of, whole
from video2lora import api
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig

Command = Callable[..., Any]
QUESTIONS = ["What colour is the object?", "Which shape is moving?", "Which way does it move?"]


@pytest.fixture(scope="module")
def using() -> api.Internalizer:
    return api.load("tiny")


@pytest.fixture(scope="module")
def adapters(using: api.Internalizer, made_clips: list[Path]) -> list[api.Adapter]:
    return [api.internalize(clip, using=using) for clip in made_clips]


@pytest.fixture
def adapter(adapters: list[api.Adapter], tmp_path: Path) -> Path:
    """The first clip's, complete in its folder."""
    api.save_adapter(adapters[0], tmp_path / "adapter")
    return tmp_path / "adapter"


def test_one_question_prints_its_answer_alone(
    command: Command, adapter: Path, adapters: list[api.Adapter], using: api.Internalizer
) -> None:
    expected = api.ask(adapters[0], QUESTIONS[0], vlm=using.vlm).text
    ran = command("ask", adapter, QUESTIONS[0])
    assert (ran.code, ran.out, ran.err) == (0, f"{expected}\n", "")
    assert command("ask", adapter, QUESTIONS[0], "--stream").out == f"{expected}\n"


def test_rivals_answer_beside_it(
    command: Command, adapter: Path, adapters: list[api.Adapter], using: api.Internalizer, made_clips: list[Path]
) -> None:
    """Text, streamed text and JSON hold the same answers: those of the method with the adapter, with the frames, and with neither."""
    video = api.read_frames(made_clips[0], using=using)
    expected = {
        "ours": api.ask_all(adapters[0], QUESTIONS, vlm=using.vlm),
        "baseline": api.ask_all(None, QUESTIONS, vlm=using.vlm, video=video),
        "blind": api.ask_all(None, QUESTIONS, vlm=using.vlm),
    }
    assert len({tuple(answer.text for answer in answers) for answers in expected.values()}) > 1
    arguments = ("ask", adapter, *QUESTIONS, "--baseline", made_clips[0], "--blind")
    lines = []
    for i, question in enumerate(QUESTIONS):
        lines.append(f"> {question}")
        for label, answers in expected.items():
            cost = f"({answers[i].n_input_tokens} tokens in, {answers[i].n_visual_tokens} visual)"
            lines.append(f"{label + ':':9} {answers[i].text}  {cost}")
    printed = command(*arguments)
    assert printed.out.splitlines() == lines
    assert command(*arguments, "--stream").out.splitlines() == lines
    assert [answer.n_visual_tokens for answers in expected.values() for answer in answers] == [0] * 3 + [16] * 3 + [0] * 3
    objects = [json.loads(line) for line in command(*arguments, "--json").out.splitlines()]
    assert objects == [
        {
            "question": question,
            "system": label,
            "answer": answer.text,
            "n_input_tokens": answer.n_input_tokens,
            "n_visual_tokens": answer.n_visual_tokens,
        }
        for label, answers in expected.items()
        for question, answer in zip(QUESTIONS, answers, strict=True)
    ]
    assert "is video" not in printed.err
    assert "is video" in command("ask", adapter, QUESTIONS[0], "--baseline", made_clips[1]).err


def test_sampling_is_set_by_name_and_repeats_with_its_seed(command: Command, adapter: Path) -> None:
    hot = ("ask", adapter, *QUESTIONS, "--temperature", 8, "--max-new-tokens", 5)
    seeds = [command(*hot, "--seed", seed).out for seed in (1, 2, 1)]
    assert seeds[0] == seeds[2] != seeds[1]
    greedy = command("ask", adapter, *QUESTIONS).out
    assert greedy not in seeds
    assert command(*hot, "--top-k", 1).out == command("ask", adapter, *QUESTIONS, "--max-new-tokens", 5).out
    assert command(*hot, "--top-p", 1.5).code == 2


def test_an_adapter_of_a_collection_is_named_by_how_its_id_begins(
    command: Command, clips: list[Path], adapters: list[api.Adapter], using: api.Internalizer, tmp_path: Path
) -> None:
    out = tmp_path / "adapters"
    assert command("internalize", *clips, "-o", out).code == 0
    ids = [api.video_id_of(clip) for clip in clips]
    for name, one in zip(ids, adapters, strict=True):
        ran = command("ask", out, *QUESTIONS, "--video", name[:9], "--json")
        answers = [json.loads(line)["answer"] for line in ran.out.splitlines()]
        assert answers == [answer.text for answer in api.ask_all(one, QUESTIONS, vlm=using.vlm)], ran.err
    for video in ("", "no such id"):
        ran = command("ask", out, QUESTIONS[0], "--video", video)
        assert ran.code == 3 and f"fits {0 if video else 3} of the 3 adapters" in ran.err and ids[0] in ran.err
    ran = command("export", out, "--video", ids[0], "--to", "peft")
    assert ran.code == 3 and "part of a collection: give another folder with -o" in ran.err
    assert "is no collection" in command("ask", out / ids[0], QUESTIONS[0], "--video", "a").err
    shown = command("inspect", out).out
    assert all(name in shown for name in ids)
    assert len(json.loads(command("inspect", out, "--json").out)["adapters"]) == 3


def test_the_static_adapter_comes_from_the_hypernetwork_that_made_the_rest(
    command: Command, clips: list[Path], adapters: list[api.Adapter], using: api.Internalizer, tmp_path: Path
) -> None:
    shipped = Path(api.__file__).parent / "tiny" / "hypernetwork"
    moved, now = tmp_path / "hypernetwork", tmp_path / "elsewhere"
    shutil.copytree(shipped, moved)
    assert command("internalize", clips[0], "-o", tmp_path / "adapter", "--hypernetwork", moved, "--without-static").code == 0
    moved.rename(now)
    ran = command("ask", tmp_path / "adapter", QUESTIONS[0])
    assert ran.code == 3 and f"its hypernetwork is not at '{moved}': say where with --hypernetwork" in ran.err
    found = command("ask", tmp_path / "adapter", *QUESTIONS, "--hypernetwork", now, "--json")
    answers = [json.loads(line)["answer"] for line in found.out.splitlines()]
    assert answers == [answer.text for answer in api.ask_all(adapters[0], QUESTIONS, vlm=using.vlm)]
    provenance = tmp_path / "adapter" / "provenance.json"
    provenance.write_text(provenance.read_text().replace(using.digest, "0" * 64))
    ran = command("ask", tmp_path / "adapter", QUESTIONS[0], "--hypernetwork", now)
    assert ran.code == 3 and "0" * 64 in ran.err and using.digest in ran.err


def test_a_question_longer_than_the_context_is_one_line(command: Command, adapter: Path, using: api.Internalizer) -> None:
    ran = command("ask", adapter, QUESTIONS[0], "word " * using.vlm.n_positions)
    assert ran.code == 3 and ran.out == ""
    assert len(ran.err.splitlines()) == 1 and f"has {using.vlm.n_positions} positions" in ran.err


def test_questions_are_answered_one_after_the_other_until_an_empty_line(
    command: Command, adapter: Path, adapters: list[api.Adapter], using: api.Internalizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that is too long costs itself; `/blind` switches that system on and off again."""
    lines = [QUESTIONS[0], "word " * using.vlm.n_positions, "/blind", QUESTIONS[1], "/blind", QUESTIONS[2], "", "never asked"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    ran = command("ask", adapter, "-i")
    ours = [answer.text for answer in api.ask_all(adapters[0], QUESTIONS, vlm=using.vlm)]
    blind = api.ask_all(None, QUESTIONS, vlm=using.vlm)[1]
    said = ran.out.splitlines()
    assert said[0] == ours[0] and said[3] == ours[2] and len(said) == 4
    assert said[1].startswith(f"ours:  {ours[1]}  (") and said[2].startswith(f"blind: {blind.text}  ({blind.n_input_tokens} tokens in")
    assert [line for line in ran.err.splitlines() if line.startswith("on:")] == ["on: ours, blind", "on: ours"]
    assert f"has {using.vlm.n_positions} positions" in ran.err and ran.code == 0


def test_adapters_are_composed_inspected_and_exported(
    command: Command, clips: list[Path], adapters: list[api.Adapter], using: api.Internalizer, tmp_path: Path
) -> None:
    parts = [tmp_path / "part0", tmp_path / "part1"]
    for part, clip in zip(parts, clips, strict=False):
        assert command("internalize", clip, "-o", part).code == 0
    ran = command("compose", *parts, "-o", tmp_path / "both")
    assert ran.out == f"{tmp_path / 'both'}: 2 adapters composed, rank 24\n"
    ran = command("compose", *parts, "-o", tmp_path / "small", "--rank", 5)
    assert "rank 5, compressed from 24: relative error 0." in ran.out
    assert "no proof of effect" in command("inspect", tmp_path / "both").out
    exported = command("export", tmp_path / "both", "--to", "peft", "-o", tmp_path / "taken")
    assert exported.code == 0, exported.err
    assert "in PEFT" in exported.out and command("inspect", tmp_path / "taken").out == exported.out
    shown = json.loads(command("inspect", tmp_path / "taken", "--json").out)
    assert (shown["r"], shown["static_r"], len(shown["provenance"]["parts"])) == (24, 8, 2)
    assert shown["proofs"]["peft"]["logit_change"] > 0.1
    assert command("ask", tmp_path / "taken", *QUESTIONS).out == command("ask", tmp_path / "both", *QUESTIONS).out
    refused = command("export", tmp_path / "both", "--to", "peft", "--rank", 4)
    assert refused.code == 2 and "give another folder with -o" in refused.err
    small = command("export", parts[0], "--to", "peft", "--rank", 8, "-o", tmp_path / "least")
    assert "rank          8 (static part not told apart)" in small.out, small.err


def test_a_released_checkpoint_is_imported_and_used(command: Command, clips: list[Path], tmp_path: Path) -> None:
    """The published hypernetworks read their VLM in bfloat16: adapters are stored and asked in it without a word."""
    config = HypernetworkConfig(
        n_layers=4, d_vlm=128, target_modules={"down_proj": (384, 128)}, r=5, n_latents=3, n_blocks=2, d_latent=13, n_heads=2, n_kv_heads=1
    )
    made = Hypernetwork(config, seed=7).requires_grad_(False)
    made.heads["down_proj"].scale_b.fill_(3.0)
    file = save_released(tmp_path / "released.pt", made.state_dict(), config)
    ran = command("import-checkpoint", file, "--vlm", "tiny", "-o", tmp_path / "ours")
    assert ran.code == 0 and "rank 5" in ran.out, ran.err
    assert command("internalize", clips[0], "-o", tmp_path / "adapter", "--hypernetwork", tmp_path / "ours").code == 0
    stored = api.load_adapter(tmp_path / "adapter")
    assert (stored.lora.r, next(iter(stored.lora.lora_a.values())).dtype) == (10, torch.bfloat16)
    using = api.load(tmp_path / "ours")
    asked = vlm_of(whole(tmp_path / "adapter"), model=None, revision=None, device="cpu", dtype=None)
    assert asked.model.dtype == using.vlm.model.dtype == torch.bfloat16
    expected = api.ask_all(api.internalize(clips[0], using=using), QUESTIONS, vlm=using.vlm)
    ran = command("ask", tmp_path / "adapter", *QUESTIONS, "--json")
    assert [json.loads(line)["answer"] for line in ran.out.splitlines()] == [answer.text for answer in expected], ran.err
    assert expected != api.ask_all(None, QUESTIONS, vlm=using.vlm)
