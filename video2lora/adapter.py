"""A video's LoRA and where it came from: as a value, in parts, joined with others, and on disk as a folder that PEFT and vLLM load.

On disk: what PEFT writes (`video2lora.peft_folder`) and `provenance.json`. The generated and the static adapter are already one, for PEFT
knows one pair of factors per module; the static one takes the last rows in rank, so that it can be told apart, stored once beside many
videos (`without_static`, `with_static`) and not be counted twice when adapters are composed.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch

from video2lora.checkpoint import new_folder, read_json, write_json
from video2lora.lora_algebra import Lora, concatenate, is_same_scaling, slice_rank
from video2lora.peft_folder import CONFIG_FILE, WEIGHTS_FILE, read_peft, write_peft

PROVENANCE_FILE = "provenance.json"
REQUIRED_PROVENANCE = ("video_id", "vlm")
TEXT_LAYERS = "model.text_model.layers"  # path of the decoder layers in SmolVLMForConditionalGeneration; of adapters that do not say
APART = "apart"  # of provenance's `static`: the static adapter is the hypernetwork's and not in this folder
LAYERS_PATH = re.compile(r"\w+(\.\w+)*")
MADE_WITH = ("vlm", "vlm_revision", "vlm_digest", "layers_path", "hypernetwork", "hypernetwork_digest")  # the same in all parts
Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Adapter:
    """One video's LoRA (batch 1) and its provenance, JSON values by name.

    Provenance has at least `video_id` and `vlm`, the name or path of the VLM it was made for; revision, digests, sampling and so on as the
    maker knows them. `static_r` says how many rows, the last in rank, are the static adapter's: 0 for none, null where generated and
    static rows were compressed together. Raises ValueError for another batch, no rank, a missing name or an impossible value.
    """

    lora: Lora
    provenance: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.lora.batch != 1:
            raise ValueError(f"an adapter holds one video's LoRA, got a batch of {self.lora.batch}")
        missing = [name for name in REQUIRED_PROVENANCE if not isinstance(self.provenance.get(name), str)]
        if missing:
            raise ValueError(f"provenance lacks {missing} (as text); it has {sorted(self.provenance)}")
        if not LAYERS_PATH.fullmatch(str(self.layers_path)):
            raise ValueError(f"provenance: layers_path is {self.layers_path!r}, expected a path of modules like {TEXT_LAYERS!r}")
        dtype = self.provenance.get("vlm_dtype")
        if dtype is not None and dtype not in get_args(Dtype):
            raise ValueError(f"provenance: vlm_dtype is {dtype!r}, expected one of {', '.join(get_args(Dtype))}")
        static_r = self.provenance.get("static_r")
        if static_r is not None and (type(static_r) is not int or not 0 <= static_r <= self.lora.r):
            raise ValueError(f"provenance: static_r is {static_r!r}, expected a part of the adapter's rank {self.lora.r}")

    @property
    def layers_path(self) -> str:
        """Where the VLM keeps its decoder layers, as transformers names modules."""
        path: str = self.provenance.get("layers_path", TEXT_LAYERS)
        return path

    @property
    def has_all(self) -> bool:
        """Whether all of the adapter is here, the static part too, if its hypernetwork has one."""
        return self.provenance.get("static") != APART

    @property
    def generated(self) -> Lora:
        """What the video made, without the static adapter. Raises ValueError where they cannot be told apart."""
        return slice_rank(self.lora, 0, self.lora.r - self._static_r())

    @property
    def static(self) -> Lora:
        """The static adapter that is part of this one; of rank 0 where there is none. Raises ValueError as `generated` does."""
        return slice_rank(self.lora, self.lora.r - self._static_r(), self.lora.r)

    def _static_r(self) -> int:
        static_r: int | None = self.provenance.get("static_r")
        if static_r is None:
            raise ValueError(
                f"adapter of video {self.provenance['video_id']!r}: its generated and static parts cannot be told apart (static_r is not "
                "known); internalize the video again, and compress the generated part alone"
            )
        return static_r


@runtime_checkable
class MadeOf(Protocol):
    """What names a VLM's weights, as `video2lora.vlm.FrozenVLM` does."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str | None: ...

    @property
    def digest(self) -> str: ...


def check_made_for(adapter: Adapter, vlm: MadeOf) -> None:
    """Raises ValueError, naming both sides, unless `vlm` has the weights that the adapter was made for and the adapter is complete.

    Weights are told by their digest, whatever their name; by name and revision in an adapter that has none.
    """
    made = adapter.provenance
    who = f"adapter of video {made['video_id']!r}"
    name, revision, digest = made["vlm"], made.get("vlm_revision"), made.get("vlm_digest")
    is_same = digest == vlm.digest if digest is not None else (name, revision) == (vlm.name, vlm.revision)
    if not is_same and name == vlm.name and revision != vlm.revision:
        raise ValueError(f"{who}: made for VLM {name!r} at revision {revision}, got revision {vlm.revision}")
    if not is_same:
        raise ValueError(f"{who}: made for VLM weights {digest} of {name!r}, got {vlm.digest} of {vlm.name!r}")
    if not adapter.has_all:
        raise ValueError(
            f"{who}: was stored without the static adapter, which hypernetwork {made.get('hypernetwork')!r} has; add it (`with_static`)"
        )


def without_static(adapter: Adapter) -> Adapter:
    """What the video made, for a store that keeps the static adapter once; an adapter without a static part comes back as it is.

    Raises ValueError where the parts cannot be told apart.
    """
    if adapter.static.r == 0:
        return adapter
    return Adapter(lora=adapter.generated, provenance={**adapter.provenance, "static_r": 0, "static": APART})


def with_static(adapter: Adapter, static: Lora, *, hypernetwork_digest: str) -> Adapter:
    """The self-contained adapter again: `static` is `Hypernetwork.static_lora()`. One that lacks nothing comes back as it is.

    Raises ValueError for the static adapter of another hypernetwork.
    """
    if adapter.has_all:
        return adapter
    expected = adapter.provenance.get("hypernetwork_digest")
    if expected != hypernetwork_digest:
        raise ValueError(
            f"adapter of video {adapter.provenance['video_id']!r}: made by hypernetwork {expected}, got the static adapter of "
            f"{hypernetwork_digest}"
        )
    provenance = {name: value for name, value in adapter.provenance.items() if name != "static"}
    lora = concatenate([adapter.lora, static.map(lambda factor: factor.detach().cpu())])
    return Adapter(lora=lora, provenance={**provenance, "static_r": static.r})


def compose_adapters(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter of several, of chunks of a video or of different videos: generated parts joined in rank, the static adapter once.

    The deltas add up, in any order (section 5.6; no 1/n). Provenance lists the `parts`; `video_id` is a hash of them, the same for the same
    parts in any order or grouping. One adapter is its own composition. Raises ValueError for none, for adapters of different VLMs,
    hypernetworks or modules, and where a static part cannot be told apart; it names both sides.
    """
    if not adapters:
        raise ValueError("expected at least one adapter to compose, got none")
    first = adapters[0]
    if len(adapters) == 1:
        return first
    for adapter in adapters:
        _check_composable(first, adapter)
    static = next((adapter.static for adapter in adapters if adapter.static.r), None)
    lora = concatenate([*(adapter.generated for adapter in adapters), *([static] if static else [])])
    parts = [part for adapter in adapters for part in _parts(adapter)]
    provenance = {name: first.provenance[name] for name in MADE_WITH if name in first.provenance}
    provenance |= {name: value for name, value in parts[0].items() if all(part.get(name) == value for part in parts)}
    for name in ("n_frames", "n_chunks"):
        provenance.pop(name, None)
        if all(isinstance(part.get(name), int) for part in parts):
            provenance[name] = sum(part[name] for part in parts)
    provenance |= {"video_id": _id_of(parts), "parts": parts, "static_r": static.r if static else 0}
    if static is None and not all(adapter.has_all for adapter in adapters):
        provenance["static"] = APART
    return Adapter(lora=lora, provenance=provenance)


def _check_composable(one: Adapter, other: Adapter) -> None:
    ids = one.provenance["video_id"], other.provenance["video_id"]
    for digest, name in (("vlm_digest", "vlm"), ("hypernetwork_digest", "hypernetwork")):
        digests = one.provenance.get(digest), other.provenance.get(digest)
        if None in digests or digests[0] != digests[1]:
            names = one.provenance.get(name), other.provenance.get(name)
            raise ValueError(
                f"cannot compose adapters of {name}s that differ or are not known: video {ids[0]!r} has {names[0]!r} ({digests[0]}), "
                f"video {ids[1]!r} has {names[1]!r} ({digests[1]})"
            )
    kinds = [(adapter.layers_path, adapter.lora.n_layers, sorted(adapter.lora.lora_a), adapter.lora.scaling) for adapter in (one, other)]
    if kinds[0][:3] != kinds[1][:3] or not is_same_scaling(one.lora, other.lora):
        raise ValueError(f"cannot compose adapters that differ in (path, n_layers, modules, scaling): {kinds[0]} and {kinds[1]}")


def _parts(adapter: Adapter) -> list[dict[str, Any]]:
    """What tells each part of an adapter: all of its provenance that is not the same in every part by necessity."""
    parts: list[dict[str, Any]] | None = adapter.provenance.get("parts")
    if parts is not None:
        return parts
    return [{name: value for name, value in adapter.provenance.items() if name not in (*MADE_WITH, "static_r", "static")}]


def _id_of(parts: Sequence[Mapping[str, Any]]) -> str:
    texts = sorted(json.dumps(part, sort_keys=True) for part in parts)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:20]


def save_adapter(adapter: Adapter, folder: Path, *, dtype: Dtype | None = None) -> None:
    """Writes a PEFT folder; replaces an adapter of ours that is there. `dtype` None keeps the factors' own.

    Raises ValueError where `folder` holds something else, or as `write_adapter` does.
    """
    with new_folder(folder, marker=PROVENANCE_FILE) as new:
        write_adapter(adapter, new, dtype=dtype)


def write_adapter(adapter: Adapter, folder: Path, *, dtype: Dtype | None = None) -> None:
    """The three files into a folder that is there. Raises ValueError as `write_peft` does."""
    lora = adapter.lora if dtype is None else adapter.lora.map(lambda factor: factor.to(getattr(torch, dtype)))
    write_peft(lora, folder, layers_path=adapter.layers_path, base_model=adapter.provenance["vlm"])
    write_json(adapter.provenance, folder / PROVENANCE_FILE)


def load_adapter(folder: Path) -> Adapter:
    """Reads what `save_adapter` wrote, on the CPU. Raises ValueError naming what is wrong with the folder."""
    absent = [name for name in (CONFIG_FILE, WEIGHTS_FILE, PROVENANCE_FILE) if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{folder} is not an adapter of video2lora: it has no {', '.join(absent)}")
    provenance = read_json(folder / PROVENANCE_FILE)
    lora, layers_path = read_peft(folder)
    if layers_path != provenance.get("layers_path", layers_path):
        raise ValueError(f"{folder}: keys are of {layers_path!r}, but layers_path is {provenance['layers_path']!r} in {PROVENANCE_FILE}")
    if layers_path != TEXT_LAYERS:
        provenance["layers_path"] = layers_path
    try:
        return Adapter(lora=lora, provenance=provenance)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
