"""Questions to an adapter, answered in lines of text or JSON: alone, beside rivals for comparison, or one after the other in a small loop.

Systems, by the label their answers carry: `ours` is the adapter and no frame; `baseline` has the video in context and no adapter; `blind`
has neither.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from infra.progress import say
from video2lora import api
from video2lora.video import Frames
from video2lora.vlm import FrozenVLM

HELP = "ask about the video; an empty line or Ctrl-D ends; {} switch who answers"


@dataclass(frozen=True)
class System:
    """What an answer comes from, beside the question."""

    adapter: api.Adapter | None = None
    video: Frames | None = None


@dataclass(frozen=True)
class Asking:
    """Who is asked, and how. `systems` are all that there are, by label."""

    vlm: FrozenVLM
    systems: Mapping[str, System]
    decoding: api.Decoding

    def answers(self, label: str, questions: Sequence[str]) -> list[api.Answer]:
        """Of one system, in one batch. Raises ValueError as `api.ask_all`."""
        system = self.systems[label]
        return api.ask_all(system.adapter, questions, vlm=self.vlm, decoding=self.decoding, video=system.video)

    def pieces(self, label: str, question: str) -> Iterator[str]:
        """One answer as it is generated. Raises ValueError as `api.stream`."""
        system = self.systems[label]
        return api.stream(system.adapter, question, vlm=self.vlm, decoding=self.decoding, video=system.video)

    def cost(self, label: str, question: str) -> str:
        """Tokens that the model reads for one answer."""
        video = self.systems[label].video
        batch = self.vlm.question_batch([question]) if video is None else self.vlm.video_batch([video], [question])
        return told_cost(int(batch.mask.sum()), self.vlm.n_visual_tokens(batch)[0])


def print_answers(asking: Asking, questions: Sequence[str], labels: Sequence[str]) -> None:
    """All questions to all systems, each system's in one batch. One system's answer to one question is printed alone."""
    by_label = {label: asking.answers(label, questions) for label in labels}
    for i, question in enumerate(questions):
        if len(questions) > 1:
            print(f"> {question}")
        for label, answers in by_label.items():
            answer = answers[i]
            cost = told_cost(answer.n_input_tokens, answer.n_visual_tokens)
            print(answer.text if len(labels) == 1 else f"{_padded(label, labels)}{answer.text}  ({cost})")


def stream_answers(asking: Asking, questions: Sequence[str], labels: Sequence[str]) -> None:
    """The same lines as `print_answers`, one answer after the other, each as it comes."""
    for question in questions:
        if len(questions) > 1:
            print(f"> {question}")
        for label in labels:
            pieces = asking.pieces(label, question)
            if len(labels) > 1:
                print(_padded(label, labels), end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print(f"  ({asking.cost(label, question)})" if len(labels) > 1 else "", flush=True)


def print_json(asking: Asking, questions: Sequence[str], labels: Sequence[str]) -> None:
    """One object per question and system, a line each."""
    for label in labels:
        for question, answer in zip(questions, asking.answers(label, questions), strict=True):
            line = {
                "question": question,
                "system": label,
                "answer": answer.text,
                "n_input_tokens": answer.n_input_tokens,
                "n_visual_tokens": answer.n_visual_tokens,
            }
            print(json.dumps(line, ensure_ascii=False), flush=True)


def talk(asking: Asking, labels: Sequence[str]) -> None:
    """Questions from standard input until an empty line or its end; answers stream. `/LABEL` switches a system on or off."""
    on = list(labels)
    switches = {f"/{label}": label for label in asking.systems}
    if sys.stdin.isatty():
        say(HELP.format(", ".join(switches)))
    for line in _lines():
        if line in switches:
            label = switches[line]
            on = [one for one in asking.systems if (one in on) != (one == label)]
            say(f"on: {', '.join(on) or 'none'}")
            continue
        try:
            stream_answers(asking, [line], on)
        except ValueError as error:  # a question that is too long costs that question
            say(f"error: {error}")


def told_cost(n_input_tokens: int, n_visual_tokens: int) -> str:
    return f"{n_input_tokens} tokens in, {n_visual_tokens} visual"


def _padded(label: str, labels: Sequence[str]) -> str:
    return f"{label}:".ljust(max(map(len, labels)) + 2)


def _lines() -> Iterator[str]:
    """Up to the first empty one. On a terminal, with a prompt and editing."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if not line.strip():
                return
            yield line.strip()
        return
    import readline  # noqa: F401, RUF100  input() edits lines and remembers them where this is loaded

    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if not line:
            return
        yield line
