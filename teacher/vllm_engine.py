"""Frames and prompts -> texts, by vLLM in this process or in one beside it. With `vllm_settings` and `serving`, all that knows vLLM.

A SmolVLM is asked as `video2lora.vlm.FrozenVLM` asks it: its own words around frames squashed to its square, as token ids, so that what
it writes is what transformers would (a test compares). Any other model is asked through its own chat template, frames as images of one
message, and its own processor resizes them.

A video's prompts go in one after the other, and each frame carries the hash of its content. So vLLM preprocesses and encodes it once,
however many prompts it has (a test counts what passes the vision tower), and they share its KV cache. The next video's frames are
decoded on a thread beside; where vLLM has a process of its own, it generates meanwhile. Texts that are to fit a schema cannot but fit it,
from their first token, or, of a model that thinks, from the end of its thinking (`vllm_settings`).
"""

import hashlib
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from infra.config import TeacherSettings
from infra.errors import BadInputError
from teacher.engine import Clip, EngineDiedError, EngineOptions, Refused, Spent, Written, one_line, spoken
from teacher.models import Model, max_model_len
from teacher.vllm_settings import inspect_here, llm_arguments, opens_thinking, sampling_arguments, schema_settings
from video2lora import prompts
from video2lora.jpeg import from_jpegs

Result = Written | Refused
WATCH_EVERY_S = 0.2


@dataclass(frozen=True)
class Pictures:
    """A video's frames as the model is given them, each known by its content, and the words around them."""

    images: list[Image.Image]
    image_ids: list[str]
    words: Any


class Asking(Protocol):
    """How a family of models is asked."""

    end_ids: list[int]  # tokens that end an answer beside the model's own

    def look(self, clip: Clip) -> Pictures:
        """Runs beside the engine. Raises ValueError for damaged frames."""

    def put(self, seen: Pictures, texts: Sequence[str]) -> list[Any]:
        """A video's prompts, each as `render` takes it."""

    def render(self, seen: Pictures, asked: Any) -> Any:
        """What vLLM takes, images expanded. Raises what vLLM finds wrong with it."""


def squares(clip: Clip, size_px: int) -> Pictures:
    """Frames as the method squashes them, with a bare image token for each in the words. Raises ValueError for damaged ones."""
    from video2lora.pixels import squash

    images = [Image.fromarray(one) for one in squash(from_jpegs(clip.jpegs), size_px)]
    return Pictures(images, _ids(clip), prompts.video_prefix(clip.timestamps_s, clip.duration_s, placeholder=prompts.IMAGE))


class AskingSmolVLM:
    """Token ids, with one image token per frame."""

    def __init__(self, llm: Any, size_px: int) -> None:
        self.renderer, self.size_px, self.tokenizer = llm.renderer, size_px, llm.get_tokenizer()
        self.image_id, end_id = self.tokenizer.convert_tokens_to_ids([prompts.IMAGE, prompts.END_OF_UTTERANCE])
        self.end_ids = [end_id]

    def look(self, clip: Clip) -> Pictures:
        return squares(clip, self.size_px) if clip.jpegs else Pictures([], [], prompts.START)

    def put(self, seen: Pictures, texts: Sequence[str]) -> list[Any]:
        whole = [seen.words + text + prompts.ASSISTANT for text in texts]
        return list(self.tokenizer(whole, add_special_tokens=False)["input_ids"]) if whole else []

    def render(self, seen: Pictures, asked: Any) -> Any:
        token_ids: list[int] = asked
        images = {"multi_modal_data": {"image": seen.images}, "multi_modal_uuids": {"image": seen.image_ids}}
        if token_ids.count(self.image_id) != len(seen.images):  # the tokenizer reads `<image>` in a text as the token
            raise SpeltImageError(f"got {token_ids.count(self.image_id)} image tokens, expected {len(seen.images)}, one per frame")
        (rendered,) = self.renderer.render_cmpl([{"prompt_token_ids": token_ids, **(images if seen.images else {})}])
        return rendered


class AskingByChat:
    """A message of images and words, which the model's own template and processor turn into its prompt."""

    def __init__(self, llm: Any) -> None:
        from vllm.renderers import ChatParams

        self.renderer = llm.renderer
        self.chat = ChatParams(chat_template_kwargs={"add_generation_prompt": True})
        self.tokens = self.renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)  # the template writes them
        config = llm.llm_engine.model_config.hf_config
        self.image_id = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        self.end_ids: list[int] = []

    def look(self, clip: Clip) -> Pictures:
        images = [Image.fromarray(one) for one in from_jpegs(clip.jpegs)] if clip.jpegs else []
        return Pictures(images, _ids(clip), spoken(clip))

    def put(self, seen: Pictures, texts: Sequence[str]) -> list[Any]:
        return list(texts)

    def render(self, seen: Pictures, asked: Any) -> Any:
        content: list[dict[str, Any]] = []
        for words, image, image_id in zip(seen.words, seen.images, seen.image_ids, strict=False):
            content += [{"type": "text", "text": words}, {"type": "image_pil", "image_pil": image, "uuid": image_id}]
        content.append({"type": "text", "text": f"{seen.words[-1]}{asked}"})
        _, (rendered,) = self.renderer.render_chat([[{"role": "user", "content": content}]], self.chat, self.tokens)
        frames = rendered["mm_placeholders"]["image"] if seen.images else []
        rest = list(rendered["prompt_token_ids"])
        for frame in frames:
            rest[frame.offset : frame.offset + frame.length] = [-1] * frame.length
        if len(frames) != len(seen.images) or self.image_id in rest:
            raise SpeltImageError(f"got an image token in the words, expected one for each of {len(seen.images)} frames alone")
        return rendered


class SpeltImageError(ValueError):
    """A text that spells an image token, which would stand for a frame that is not there."""


class TooLongError(ValueError):
    """A prompt that leaves no room for an answer."""


class VllmEngine:
    """A vLLM engine: on the GPUs that Ray gave this process, or on the CPU."""

    def __init__(
        self, model: Model, settings: TeacherSettings, options: EngineOptions, *, n_frames: int, schema: dict[str, Any] | None = None
    ) -> None:
        """`n_frames` is the most that a video has. Raises BadInputError for a model that cannot be asked about so many."""
        from vllm import LLM, SamplingParams

        if not options.gpu and model.smolvlm is not None:
            inspect_here()
        self.spent = Spent()
        self.model, self.settings, self.options = model, settings, options
        self.longest = max_model_len(model, settings) - settings.max_tokens
        thinks = schema is not None and opens_thinking(model)
        self.llm = LLM(**llm_arguments(model, settings, options, n_frames=n_frames), **(schema_settings(thinks=thinks) if schema else {}))
        self.tokenizer = self.llm.get_tokenizer()
        self.asking: Asking = AskingByChat(self.llm) if model.smolvlm is None else AskingSmolVLM(self.llm, model.smolvlm.image_size_px)
        self.sampling = SamplingParams(**sampling_arguments(settings, end_ids=self.asking.end_ids, schema=schema, thinks=thinks))
        self.n_asked = 0
        self.stopped = threading.Event()
        if options.process:
            _watch(self.llm.llm_engine.engine_core, self.stopped)
        self._try_out(n_frames)

    def write(self, clips: Sequence[Clip]) -> list[list[Result]]:
        engine = self.llm.llm_engine
        results: list[list[Result | None]] = [[None] * len(clip.prompts) for clip in clips]
        asked: dict[str, tuple[int, int]] = {}
        looking = ThreadPoolExecutor(1)
        ahead = deque((i, looking.submit(self.asking.look, clip)) for i, clip in enumerate(clips))
        self.spent.begin()
        try:
            while ahead or engine.has_unfinished_requests():
                while ahead and self._goes_in(ahead[0][1]):
                    idle = not self._works_beside()
                    i, looked = ahead.popleft()
                    self._ask(clips[i], i, looked, asked=asked, results=results)
                    self.spent.lap(idle=idle)
                for output in engine.step() if engine.has_unfinished_requests() else ():
                    i, j = asked[output.request_id]
                    results[i][j] = self._written(output)
                self.spent.lap(idle=False)
        except Exception as error:
            raise EngineDiedError(one_line(error)) from error
        finally:
            looking.shutdown(wait=False, cancel_futures=True)
        return [[_said(one) for one in of_clip] for of_clip in results]

    def stop(self) -> None:
        """Of an engine that died, its process is gone, or it is beyond hearing: nothing it raises matters any more."""
        self.stopped.set()
        try:
            self.llm.llm_engine.engine_core.shutdown()
        except Exception:
            return

    def _goes_in(self, looked: "Future[Pictures]") -> bool:
        """Whether to put it in before the engine's next step: at once what is ready, and where the engine would only wait, the rest too."""
        return looked.done() or not self._works_beside()

    def _works_beside(self) -> bool:
        """Whether the engine has something to do while this process prepares; as far as can be seen here, until the last answer is read."""
        return self.options.process and bool(self.llm.llm_engine.has_unfinished_requests())

    def _ask(
        self,
        clip: Clip,
        i: int,
        looked: "Future[Pictures]",
        *,
        asked: dict[str, tuple[int, int]],
        results: list[list[Result | None]],
    ) -> None:
        """Put in all of a clip's prompts, but what is wrong with one becomes its result."""
        try:
            seen = looked.result()
        except ValueError as error:
            results[i] = [Refused("teacher_error", one_line(error))] * len(clip.prompts)
            return
        for j, one in enumerate(self.asking.put(seen, [prompt.prompt for prompt in clip.prompts])):
            try:
                asked[self._add(seen, one)] = i, j
            except Exception as error:  # one prompt becomes a reject
                results[i][j] = _refusal(error)

    def _add(self, seen: Pictures, one: Any) -> str:
        """Put in one prompt; its number. Raises what is wrong with it."""
        rendered = self.asking.render(seen, one)
        n_tokens = len(rendered["prompt_token_ids"])
        if n_tokens > self.longest:
            raise TooLongError(f"got {n_tokens} tokens, expected at most {self.longest} ({self.model.section}.max_model_len)")
        self.n_asked += 1
        self.llm.llm_engine.add_request(str(self.n_asked), rendered, self.sampling)
        return str(self.n_asked)

    def _written(self, output: Any) -> Written:
        one = output.outputs[0]
        token_ids = list(one.token_ids)
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True).strip()
        written = Written(text, len(token_ids), str(one.finish_reason), len(output.prompt_token_ids))
        if not self.settings.logprobs:
            return written
        tops = [sorted(at.items(), key=lambda item: item[1].rank)[: self.settings.logprobs] for at in one.logprobs]
        return Written(
            **{name: getattr(written, name) for name in ("text", "n_tokens", "finish_reason", "n_prompt_tokens")},
            token_ids=token_ids,
            top_token_ids=[token_id for at in tops for token_id, _ in at],
            top_logprobs=[top.logprob for at in tops for _, top in at],
        )

    def _try_out(self, n_frames: int) -> None:
        """Render a prompt about as many frames as there will be: a model that cannot be asked so is an error now, not in every row."""
        if self.model.smolvlm is not None:  # whose size is known before anything starts
            return
        image = Image.new("RGB", (64, 64))
        seen = Pictures([image] * n_frames, [f"try-{i}" for i in range(n_frames)], [""] * (n_frames + 1))
        try:
            n_tokens = len(self.asking.render(seen, "?")["prompt_token_ids"])
        except Exception as error:
            raise BadInputError(
                f"{self.model.section}.model: {self.model.path} cannot be asked about {n_frames} frames: {one_line(error)}"
            ) from error
        if n_tokens > self.longest:
            raise BadInputError(
                f"recipe: {self.model.section}.max_model_len: {n_frames} frames are {n_tokens} tokens, and {self.longest} is all that "
                "max_model_len and max_tokens leave; take fewer frames or a larger max_model_len"
            )


def _watch(core: Any, stopped: threading.Event) -> None:
    """Let `step` raise where vLLM's process is gone. vLLM notices, and its synchronous client still waits for an answer without end."""
    from vllm.v1.engine.exceptions import EngineDeadError

    answers = core.outputs_queue

    def watch() -> None:
        while not stopped.wait(WATCH_EVERY_S):
            if core.resources.engine_dead:
                answers.put_nowait(EngineDeadError())
                return

    threading.Thread(target=watch, daemon=True, name="engine-watch").start()


def _refusal(error: Exception) -> Refused:
    """What is wrong with a prompt, where it is the prompt; raises it again where it is the engine."""
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineDeadError):
        raise error
    if isinstance(error, TooLongError | SpeltImageError):
        return Refused("prompt_too_long" if isinstance(error, TooLongError) else "bad_row", str(error))
    too_long = getattr(error, "parameter", None) in ("input_tokens", "input_text")  # vLLM's own check, of a text much too long
    return Refused("prompt_too_long" if too_long else "teacher_error", one_line(error))


def _ids(clip: Clip) -> list[str]:
    return [hashlib.sha256(jpeg).hexdigest() for jpeg in clip.jpegs]


def _said(result: Result | None) -> Result:
    return Refused("teacher_error", "the engine gave no answer") if result is None else result
