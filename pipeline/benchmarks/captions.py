"""Annotation files of the five captioning benchmarks -> items: the words of a caption's prompt depend on benchmark and style alone.

Formats: those of the authors' repositories and Hub cards (docs/benchmarks.md says which were read on real rows). Each text that a
benchmark has for the same caption is a reference of its own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from infra.contents import Span
from pipeline.benchmarks.items import File, Item, Loaded, clean, count_of, gather, json_object, json_rows, shown, text_of, video_of

VDC_STYLES = ("short", "detailed", "camera", "background", "main_object")
CAREBENCH_COLUMNS = {
    "caption": "caption", "spatial": "spatial_caption", "temporal": "temporal_caption", "events": "events", "objects": "objects",
}  # fmt: skip
STC_FRAMES_PER_S = 6  # of SA-V's videos_fps_6.tar, in whose frames PLM-VideoBench counts

Row = dict[str, Any]


def activitynet_captions(files: Sequence[File]) -> Loaded:
    """{"v_ID": {"sentences": [...]}} or, in paragraph files, {"v_ID": text}. What each file says of a video is a reference.

    val_1 and val_2 are by different annotators, of nearly the same videos. The order of the files makes no difference.
    """
    references: dict[str, set[str]] = {}
    loaded = Loaded()
    for file in files:
        for video, said in json_object(file).items():
            try:
                references.setdefault(video_of({"video": video}, "video"), set()).add(_paragraph(said))
            except ValueError as error:
                loaded.bad.append((f"{file.name}:{shown(video)}", str(error)))
    for video, texts in references.items():
        if texts:
            names = (video, video.removeprefix("v_"))
            loaded.items.append(Item(video, video, names, tuple(sorted(texts)), task="caption"))
    return loaded


def plm_rcap(files: Sequence[File]) -> Loaded:
    """uid, video, total_frames, start_frame, end_frame, caption: what one subject does in a span of the video."""
    return gather((row for file in files for row in json_rows(file)), _rcap)


def plm_rdcap(files: Sequence[File]) -> Loaded:
    """uid, video, total_frames, dense_captions [{start_frame, end_frame, caption}]: what one subject does, from beginning to end."""
    return gather((row for file in files for row in json_rows(file)), _rdcap)


def vdc(files: Sequence[File]) -> Loaded:
    """VDC_1k.jsonl: video_id, video_name, and short_caption to main_object_caption."""
    return _by_style(files, {style: f"{style}_caption" for style in VDC_STYLES}, _vdc)


def carebench(files: Sequence[File]) -> Loaded:
    """metadata.json: video, caption, spatial_caption, temporal_caption, events, objects."""
    return _by_style(files, CAREBENCH_COLUMNS, _carebench)


def _by_style(files: Sequence[File], columns: dict[str, str], read: Any) -> Loaded:
    """An item of each row and style; a row that lacks one of them is bad in that style alone."""
    loaded = Loaded()
    for file in files:
        rows = json_rows(file)
        for style, column in columns.items():
            of_style = gather(((f"{key}/{style}", row) for key, row in rows), partial(read, style, column))
            loaded.items.extend(of_style.items)
            loaded.bad.extend(of_style.bad)
    return loaded


def _vdc(style: str, column: str, key: str, row: Row) -> Item:
    names = tuple(dict.fromkeys(video_of(row, name) for name in ("video_name", "video_id") if row.get(name) is not None))
    if not names:
        raise ValueError("video_id: got None, expected a text")
    reference = text_of(row, column)
    return Item(key, f"{names[-1]}/{style}", names, (reference,), style=style, task="caption")


def _carebench(style: str, column: str, key: str, row: Row) -> Item:
    video, said = video_of(row, "video"), row.get(column)
    texts = [clean(one, column) for one in (said if isinstance(said, list) and said else [said])]
    # A list of short phrases is one reference, joined as on the paper's page; a list of captions is several.
    references = ("; ".join(texts),) if style in ("events", "objects") else tuple(texts)
    return Item(key, f"{video}/{style}", (video,), references, style=style, task="caption")


def _rcap(key: str, row: Row) -> Item:
    start, end, total = (count_of(row, name) for name in ("start_frame", "end_frame", "total_frames"))
    if not start <= end < total:
        raise ValueError(f"start_frame, end_frame, total_frames: got {start}, {end}, {total}, expected start <= end < total")
    span: Span = (None, None)
    if (start, end) != (0, total - 1):
        span = round(start / STC_FRAMES_PER_S, 6), round((end + 1) / STC_FRAMES_PER_S, 6)
    return _region(key, row, text_of(row, "caption"), span)


def _rdcap(key: str, row: Row) -> Item:
    said = row.get("dense_captions")
    if not isinstance(said, list) or not said or not all(isinstance(one, dict) for one in said):
        raise ValueError("dense_captions: expected a list of objects with start_frame, end_frame and caption")
    captions = sorted((count_of(one, "start_frame"), count_of(one, "end_frame"), text_of(one, "caption")) for one in said)
    return _region(key, row, " ".join(caption for *_, caption in captions), (None, None))


def _region(key: str, row: Row, reference: str, span: Span) -> Item:
    """The paper's prompt names no region, so that rows of other subjects of the same video ask the same: told apart by their uid."""
    uid = str(row.get("uid"))
    if row.get("uid") is None:
        raise ValueError("uid: got None, expected a number or a text")
    return Item(key, uid, (video_of(row, "video"),), (reference,), task="caption", span=span, told_apart_by=uid)


def _paragraph(said: Any) -> str:
    """Sentences in their order, which is that of their beginnings as annotated."""
    if isinstance(said, str):
        return " ".join(clean(said, "paragraph").split())
    sentences = said.get("sentences") if isinstance(said, dict) else None
    if not isinstance(sentences, list) or not sentences:
        raise ValueError("sentences: expected a list of texts")
    return " ".join(clean(one, "sentences") for one in sentences)
