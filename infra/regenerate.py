"""A collection of adapters -> a new one by another hypernetwork: the same videos, most used first, from the clips' addresses.

Command: `video2lora regenerate DIR`. The new collection lies beside the old one, which stays as it is and may be asked meanwhile; a killed
run is continued by the same command. How frames are chosen, chunked and stored is as it was; who makes the adapters is the VLM's champion.

Videos in = adapters there or made + rejects. A clip that is gone is a reject, and so is one that holds another video now (`superseded`).
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.collection import read_catalogue
from infra.errors import BadInputError
from infra.hypernetworks import adapters_digest, address_of, identity, local_hypernetwork, vlm_label
from infra.objects import read_json, write_new
from infra.options import ModelOptions
from infra.progress import say
from infra.promotions import champion
from infra.uses import USES, as_lines, read_uses, uses_of

if TYPE_CHECKING:
    from infra.internalize import Making

Row = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The videos of a collection, most used first, and what made their adapters."""

    folder: Path
    rows: list[Row]
    made_by: dict[str, Any]

    @property
    def videos(self) -> frozenset[str]:
        return frozenset(row["video_id"] for row in self.rows)


def run(folder: Path, output: Path | None, root: str, *, models: ModelOptions, uses: Path | None, batch_size: int) -> str:
    """Raises BadInputError, after all that could be done, where some gave no adapter; and as `internalize.run_many`."""
    wanted = read_wanted(folder, uses)
    address = _hypernetwork(wanted, root, models)
    digest = adapters_digest(identity(address, named_by="--hypernetwork"))
    if digest == wanted.made_by.get("hypernetwork_digest"):
        return f"{folder}: made by {address} already; nothing to do"
    output = output or beside(folder, digest, before=wanted.made_by.get("hypernetwork_digest", ""))
    if _is_complete(output, wanted.videos, digest):
        return f"{output}: complete, all {len(wanted.videos)} adapters by {address}; nothing to do"
    say(f"{folder} -> {output}: {len(wanted.rows)} adapters by {address}, most used first")
    from infra import internalize as work  # torch: not needed to find that there is nothing to do

    with local_hypernetwork(address) as local:
        making = _making(wanted, address, str(local), models)
        videos = {row["video_id"]: row["uri"] for row in wanted.rows}
        clips = list(dict.fromkeys(uri for uri in videos.values() if uri))
        try:
            return work.run_many(clips, output, making, batch_size=batch_size, wanted=videos)
        finally:
            _carry_uses(wanted, output)


def read_wanted(folder: Path, uses: Path | None) -> Wanted:
    """Most used first; `uses` is a table beside what was counted in the collection. Raises BadInputError, StorageError."""
    rows = read_catalogue(folder)
    if not rows:
        raise BadInputError(f"{folder} holds no adapter")
    made_by = read_json(str(folder / "made.json"))
    if made_by is None:
        raise BadInputError(f"{folder} has no made.json, which says how its adapters were made: use `video2lora internalize`")
    counted = uses_of(folder)
    if uses is not None:
        counted.update(read_uses(uses))
    return Wanted(folder, sorted(rows, key=lambda row: (-counted[row["video_id"]], row["video_id"])), made_by)


def beside(folder: Path, digest: str, *, before: str) -> Path:
    """Where the collection by another hypernetwork goes: of the same name, with the beginning of its digest in place of that `before`."""
    whole = Path(os.path.abspath(folder))  # which has a name, as `.` and `..` have none
    old = f"-{before[:8]}" if before else ""  # a date is eight digits too, and stays
    return whole.with_name(f"{whole.name.removesuffix(old)}-{digest[:8]}")


def _hypernetwork(wanted: Wanted, root: str, models: ModelOptions) -> str:
    """Address of the one that is to make them. Raises BadInputError where nobody named one and there is no champion."""
    if models.hypernetwork is not None:
        address = address_of(models.hypernetwork)
        return address if "://" in address else os.path.abspath(address)
    vlm = vlm_label(wanted.rows[0]["vlm"])
    now = champion(root, vlm)
    if now is None:
        raise BadInputError(f"{root}: VLM {vlm} has no champion: promote one, or name a hypernetwork with --hypernetwork")
    return now.folder if "://" in now.folder else os.path.abspath(now.folder)


def _is_complete(output: Path, videos: frozenset[str], digest: str) -> bool:
    made_by = read_json(str(output / "made.json")) or {}
    if made_by.get("hypernetwork_digest") != digest or not (output / "catalogue.parquet").is_file():
        return False
    return videos <= {row["video_id"] for row in read_catalogue(output)}


def _making(wanted: Wanted, address: str, local: str, models: ModelOptions) -> "Making":
    """As the collection's adapters were made, by another hypernetwork. Raises BadInputError where it is for another VLM."""
    from infra.internalize import Making, sampling_named
    from infra.stored import absolute, check_device
    from video2lora import api

    check_device(models.device)
    made_by, vlm = wanted.made_by, None if models.vlm is None else absolute(models.vlm)
    using = api.load(local, vlm=vlm, revision=models.revision, device=models.device, dtype=models.dtype or made_by["dtype"])
    if using.vlm.digest != made_by["vlm_digest"]:
        raise BadInputError(f"{wanted.folder} is for VLM weights {made_by['vlm_digest']}, and {address} for {using.vlm.digest}")
    network, max_rank = using.hypernetwork.config, made_by["max_rank"]
    if max_rank is not None and network.static_adapter and max_rank <= network.r:  # or each video would be refused for it
        raise BadInputError(f"{wanted.folder}: its max_rank is {max_rank}, and the static adapter of {address} alone has {network.r}")
    using = replace(using, name="tiny" if address == address_of("tiny") else address)  # not where it was fetched to
    if using.sampling.name != made_by["sampling"]:
        say(f"note: frames are chosen as before ({made_by['sampling']}); this hypernetwork was trained on {using.sampling.name}")
    return Making(
        using=using.sampled(sampling_named(made_by["sampling"])),
        **{name: made_by[name] for name in ("frames_per_chunk", "max_rank", "pictures_per_s", "stored_as", "self_contained")},
    )


def _carry_uses(wanted: Wanted, output: Path) -> None:
    """What the old collection was used counts for the new one, unless that has been used already."""
    counted = uses_of(wanted.folder)
    if counted and output.is_dir():
        write_new(str(output / USES), as_lines(counted))
