"""Options that belong together, declared once: a command's parameter of a dataclass type stands for one option per field.

    @app.command()
    @grouped
    def ask(adapter: Path, models: ModelOptions) -> None: ...     # video2lora ask DIR --device cuda

Typer reads a command's signature; `grouped` writes one with the fields in place of the group. Every field needs a default.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_type_hints

import typer

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]
StoredAs = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class ModelOptions:
    """Which models, and where they run."""

    hypernetwork: Annotated[str | None, typer.Option(help="A hypernetwork's folder; `tiny` is the one that ships.")] = None
    vlm: Annotated[str | None, typer.Option(help="The frozen VLM from another folder or hub name than the one recorded.")] = None
    revision: Annotated[str | None, typer.Option(help="Of the VLM, on the hub.")] = None
    device: Annotated[Device, typer.Option(help="Where the models run.")] = "cpu"
    dtype: Annotated[Dtype | None, typer.Option(help="Of the VLM; by default what the hypernetwork was trained with.")] = None


@dataclass(frozen=True)
class FramesOptions:
    """Which frames the hypernetwork reads; by default, chosen as those it was trained on."""

    frames: Annotated[int | None, typer.Option(min=1, help="Exactly so many, evenly spread: short for --sampling uniform-N.")] = None
    sampling: Annotated[str | None, typer.Option(help="uniform-64, published-12-1fps, fps-2 or fps-2-max-64.")] = None
    fps: Annotated[float, typer.Option(min=0.001, help="Pictures a second in a folder of pictures.")] = 1.0
    frames_per_chunk: Annotated[int, typer.Option(min=1, help="A longer video is read in chunks of so many frames, joined in rank.")] = 64


@dataclass(frozen=True)
class StoreOptions:
    """What an adapter's folder holds."""

    max_rank: Annotated[int | None, typer.Option(min=1, help="Compress adapters of more, static part counted (truncated SVD).")] = None
    stored_as: Annotated[StoredAs | None, typer.Option(help="By default as the VLM: bfloat16 where it runs in it.")] = None
    without_static: Annotated[
        bool, typer.Option("--without-static", help="Leave the static adapter with the hypernetwork: half the bytes, and no PEFT adapter.")
    ] = False


@dataclass(frozen=True)
class DecodingOptions:
    """How answers are generated: greedily, unless a temperature is given."""

    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the k likeliest tokens; 0: all.")] = 0
    top_p: Annotated[float, typer.Option(min=0.001, max=1.0, help="Sample among the likeliest tokens that make up p.")] = 1.0
    seed: Annotated[int, typer.Option(min=0, help="Of what is sampled.")] = 0


@dataclass(frozen=True)
class RivalOptions:
    """What else answers the same questions, for comparison."""

    baseline: Annotated[str | None, typer.Option(metavar="CLIP", help="Also with this clip's frames in context.")] = None
    blind: Annotated[bool, typer.Option("--blind", help="Also with neither adapter nor frames.")] = False
    fps: Annotated[float, typer.Option(min=0.001, help="Pictures a second, where the CLIP is a folder of pictures.")] = 1.0


@dataclass(frozen=True)
class TalkOptions:
    """In which form."""

    stream: Annotated[bool, typer.Option("--stream", help="Print answers as they come.")] = False
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Ask one question after the other.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per answer, a line each.")] = False


@dataclass(frozen=True)
class ClusterOptions:
    """Whose machines."""

    address: Annotated[
        str | None, typer.Option(metavar="URL", help="A Ray head's job server, http://HEAD:8265. [env: RAY_API_SERVER_ADDRESS]")
    ] = None
    kubernetes: Annotated[bool, typer.Option("--kubernetes", "-k", help="Kubernetes with KubeRay, as kubectl is set up.")] = False
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="With --kubernetes: another than kubectl is set to.")] = None

    def is_given(self) -> bool:
        return self.kubernetes or self.address is not None or self.namespace is not None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer is to see it; called with options, it hands over groups."""
    groups: dict[str, Any] = {}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        group: Any = parameter.annotation
        if not is_dataclass(group):
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[name] = group
        hints = get_type_hints(group, include_extras=True)
        options += [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
            for field in fields(group)
        ]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        made = {name: group(**{field.name: values.pop(field.name) for field in fields(group)}) for name, group in groups.items()}
        command(**values, **made)

    called.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return called
