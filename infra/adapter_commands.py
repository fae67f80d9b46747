"""The commands about adapters: make them, ask them, look at them, take them elsewhere. `infra.cli` mounts them.

Torch and the method are imported when a command runs, not before, so that `--help` and wrong usage answer at once; what lies in a layer
above this one is started by name.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infra.errors import BadInputError, StorageError, TerminatedError
from infra.options import DecodingOptions, FramesOptions, ModelOptions, RivalOptions, StoreOptions, TalkOptions, grouped

if TYPE_CHECKING:
    from infra.internalize import Making

BATCH_SIZE = 8  # videos at once where several are given and nobody says

OutputOption = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")]
VideoOption = Annotated[str | None, typer.Option(help="Which adapter of a collection: its id, or how it begins.")]
RankOption = Annotated[int | None, typer.Option("--rank", "--max-rank", min=1, help="Compress it to at most this rank (truncated SVD).")]


def mount(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    for command in (internalize, ask, export, inspect, compose, import_checkpoint):
        app.command(name=command.__name__.replace("_", "-"), rich_help_panel="Adapters")(grouped(command))


def internalize(
    clips: Annotated[list[str], typer.Argument(metavar="CLIP...", help="Files, folders of pictures, URLs, quoted patterns.")],
    output: OutputOption,
    models: ModelOptions,
    frames: FramesOptions,
    store: StoreOptions,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Videos that go through the models at once; DIR is a collection.")] = None,
) -> None:
    """Turn CLIPs into adapters.

    A CLIP is a video file, a URL (http, https, s3 and what else fsspec opens), or a folder of pictures, which are taken in the natural
    order of their names, one a second unless --fps says otherwise.

    One CLIP: DIR becomes its adapter. Several, or --batch-size: DIR becomes a collection, an adapter each under DIR/ID with
    catalogue.parquet, and rejects.parquet for clips that gave none. The same command again continues it; a content is made once.
    """
    from infra.fetch import expand

    if ":/" in str(output):
        raise BadInputError(f"-o: got {output}, expected a local folder")
    with bad_input():
        found = expand(clips)
        if len(found) == 1 and batch_size is None:
            _check_one(found[0], output)
        making = _making(models, frames, store)
        from infra import internalize as work

        if len(found) == 1 and batch_size is None:
            print(work.run_one(found[0], output, making))
        else:
            print(work.run_many(found, output, making, batch_size=batch_size or BATCH_SIZE))


def ask(
    adapter: Annotated[Path, typer.Argument(metavar="DIR", help="An adapter, or with --video a collection of them.")],
    questions: Annotated[list[str] | None, typer.Argument(metavar="QUESTION...", help="All are answered in one batch.")] = None,
    *,
    video: VideoOption = None,
    models: ModelOptions,
    decoding: DecodingOptions,
    rivals: RivalOptions,
    talk: TalkOptions,
) -> None:
    """Ask the frozen VLM under an adapter; it sees the questions' text alone.

    With --baseline or --blind, others answer too, on lines of their own with what they cost. Without a question, on a terminal: a small
    loop.
    """
    questions = questions or []
    if any("\udc80" <= char <= "\udcff" for one in questions for char in one):  # as Python has bytes of the command line that are no text
        raise typer.BadParameter("a question is not UTF-8")
    interactive = talk.interactive or (not questions and sys.stdin.isatty())
    if not questions and not interactive:
        raise typer.BadParameter("give a question, or --interactive")
    if talk.as_json and (talk.stream or interactive):
        raise typer.BadParameter("--json goes with neither --stream nor --interactive")
    from infra import chat, stored
    from infra.collection import adapter_folder
    from infra.uses import count_use
    from video2lora.generation import Decoding

    with bad_input():
        stored.check_device(models.device)
        folder = adapter_folder(adapter, video)
        one = stored.whole(folder, hypernetwork=models.hypernetwork)
        if folder != adapter:
            count_use(adapter, folder.name)
        vlm = stored.vlm_of(one, model=models.vlm, revision=models.revision, device=models.device, dtype=models.dtype)
        systems = {"ours": chat.System(adapter=one)}
        if rivals.baseline is not None:
            systems["baseline"] = chat.System(video=stored.frames_like(one, rivals.baseline, pictures_per_s=rivals.fps))
        systems["blind"] = chat.System()
        labels = [label for label in systems if label != "blind" or rivals.blind]
        how = Decoding(
            max_new_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
            seed=decoding.seed,
        )
        asking = chat.Asking(vlm, systems, how)
        say_all = chat.print_json if talk.as_json else chat.stream_answers if talk.stream else chat.print_answers
        if questions:
            say_all(asking, questions, labels)
        if interactive:
            chat.talk(asking, labels)


def export(
    adapter: Annotated[Path, typer.Argument(metavar="DIR", help="An adapter, or with --video a collection of them.")],
    to: Annotated[Literal["peft"], typer.Option(help="The format.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A folder; by default DIR itself.")] = None,
    *,
    check: Annotated[Literal["vllm"] | None, typer.Option(help="Load it there too, and ask.")] = None,
    rank: RankOption = None,
    video: VideoOption = None,
    models: ModelOptions,
) -> None:
    """Make an adapter ready to be taken away: complete in its folder, with a card, and with a proof that it does something in PEFT."""
    if rank is not None and output is None:
        raise typer.BadParameter("--rank changes the adapter: give another folder with -o")
    from infra import stored
    from infra.collection import adapter_folder
    from video2lora import export as exporting

    with bad_input():
        stored.check_device(models.device)
        folder = adapter_folder(adapter, video)
        if output is None and folder != adapter:
            raise BadInputError(f"{folder} is part of a collection: give another folder with -o")
        one = stored.whole(folder, hypernetwork=models.hypernetwork)
        one = one if rank is None else stored.compressed(one, rank)
        dtype = models.dtype or "float32"  # the proof is in it
        vlm = stored.vlm_of(one, model=models.vlm, revision=models.revision, device=models.device, dtype=dtype)
        exporting.export_peft(one, vlm=vlm, output=output or folder)
        if check is not None:
            del vlm
            stored.release_memory(models.device)
            serving = importlib.import_module("teacher.serving")
            serving.check_in_vllm([output or folder], vlm=models.vlm, revision=models.revision, gpu=models.device == "cuda")
        print("\n".join(exporting.inspection(exporting.inspect_adapter(output or folder))))


def inspect(
    adapter: Annotated[Path, typer.Argument(metavar="DIR", help="An adapter, or a collection of them.")],
    video: VideoOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show what an adapter is, where it comes from, and what it was seen to do in PEFT and vLLM; or what a collection holds."""
    from infra import collection
    from video2lora import export as exporting

    with bad_input():
        if video is None and (adapter / "catalogue.parquet").is_file():
            found, lines = collection.inspect(adapter)
        else:
            found = exporting.inspect_adapter(collection.adapter_folder(adapter, video))
            lines = exporting.inspection(found)
    print(json.dumps(found, indent=1, default=str) if as_json else "\n".join(lines))


def compose(
    adapters: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Adapters of the same hypernetwork.")],
    output: OutputOption,
    rank: RankOption = None,
) -> None:
    """Join adapters, of parts of a video or of several, into one that knows them all: ranks add up, the static adapter counts once."""
    from infra import stored
    from infra.collection import storing
    from video2lora import adapter as on_disk

    with bad_input():
        composed = on_disk.compose_adapters([on_disk.load_adapter(folder) for folder in adapters])
        short = composed if rank is None else stored.compressed(composed, rank)
        with storing(output):
            on_disk.save_adapter(short, output)
    lost = f", compressed from {composed.lora.r}: relative error {short.provenance['compression_error']:g}" if short is not composed else ""
    print(f"{output}: {len(adapters)} adapters composed, rank {short.lora.r}{lost}")


def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE.pt", help="A released checkpoint. Nothing in it is executed.")],
    vlm: Annotated[str, typer.Option(help="The VLM that it was trained for: a folder, or a hub name.")],
    output: OutputOption,
    revision: Annotated[str | None, typer.Option(help="Of the VLM, on the hub.")] = None,
) -> None:
    """Read a published hypernetwork into ours: safetensors and config.json."""
    with bad_input():
        print(importlib.import_module("infra.import_checkpoint").run(str(file), vlm=vlm, revision=revision, output=output))


class _ToldToEnd(BaseException):
    """By a signal: no `except Exception` on the way takes it for its own."""


@contextmanager
def bad_input() -> Iterator[None]:
    """The method's ValueErrors are about what the user gave: one line, exit code 3; what the disk says is one line too.

    SIGTERM, and SIGHUP where it would end the command, are errors like others: what was made is entered, what was fetched is removed.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def take(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])  # the second time it is not waited for
        raise _ToldToEnd

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, take)
    try:
        yield
    except ValueError as error:
        raise BadInputError(" ".join(str(error).split())) from error
    except _ToldToEnd as error:
        raise TerminatedError("terminated; what was made is kept, and the same command continues") from error
    except BrokenPipeError:  # who read what is printed has gone
        raise
    except OSError as error:
        raise StorageError(" ".join(f"{error.filename or 'storage'}: {error.strerror or error}".split())) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _making(models: ModelOptions, frames: FramesOptions, store: StoreOptions) -> "Making":
    if frames.frames is not None and frames.sampling is not None:
        raise typer.BadParameter("--frames and --sampling say the same thing: give one")
    from infra.internalize import Making, sampling_named
    from infra.stored import absolute, check_device
    from video2lora import api

    name = frames.sampling or (f"uniform-{frames.frames}" if frames.frames else None)
    sampling = None if name is None else sampling_named(name)
    check_device(models.device)
    using = api.load(
        absolute(models.hypernetwork or "tiny"),
        vlm=None if models.vlm is None else absolute(models.vlm),
        revision=models.revision,
        device=models.device,
        dtype=models.dtype,
    )
    network = using.hypernetwork.config
    if store.max_rank is not None and network.static_adapter and store.max_rank <= network.r:  # or each clip would be refused for it
        raise BadInputError(f"--max-rank: got {store.max_rank}, expected more than {network.r}, the static adapter's rank")
    return Making(
        using=using if sampling is None else using.sampled(sampling),
        frames_per_chunk=frames.frames_per_chunk,
        max_rank=store.max_rank,
        pictures_per_s=frames.fps,
        stored_as=store.stored_as or using.vlm.dtype,
        self_contained=not store.without_static,
    )


def _check_one(clip: str, output: Path) -> None:
    """What can be known before the models are loaded. Raises VideoDecodeError, BadInputError."""
    from infra.fetch import is_url
    from video2lora.video_file import check_file

    if not is_url(clip) and not os.path.isdir(clip):
        check_file(clip)
    if (output / "catalogue.parquet").exists():
        raise BadInputError(
            f"{output} is a collection of adapters: with --batch-size 1 this clip goes into it; or give another folder with -o"
        )
