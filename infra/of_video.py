"""A video, named as a person would -> its id, and which keys of each table are its own.

Named by its id, by how that begins, or by a file: then by the file's content, wherever it lies now. Keys of the tables in BY_VIDEO
begin with the video's id; its questions, and their answers, are found by the table `questions`, its content and addresses by `files`. What
a judge said is known by the words it judged: the video's are those that no answer about another one shares.
"""

import importlib
import os
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from infra.artifacts import FILES
from infra.attempt import Row
from infra.errors import BadInputError
from infra.judged import judged
from infra.sets import tables_of
from infra.storage import Table
from video2lora.video import VideoDecodeError, short_id

FORGOTTEN = "forgotten/"  # and a video_id: the key of the reject that `forget` leaves in `videos`
BY_VIDEO = ("videos", "frames", "targets", "examples", "visual_tokens")  # tables whose keys begin with a video's id
BY_QUESTION = ("questions", "answers")
ID = re.compile("[0-9a-f]{20}")  # as `short_id` makes them
N_NAMED = 5  # ids that an error names


@dataclass(frozen=True)
class Video:
    """A video's id, and what else its rows are known by."""

    video_id: str
    question_ids: tuple[str, ...]
    file_keys: tuple[str, ...]
    contents: tuple[str, ...]  # that no other video is of
    judgement_ids: tuple[str, ...]  # of words that no other video's answers have

    def owns(self, table: Table, keys: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
        """Which of a table's keys, of rows or rejects, are this video's. That it is forgotten is none of them."""
        known_by = {"files": self.file_keys, "scenes": self.contents, "judgements": self.judgement_ids}
        if table.name in known_by:
            return pc.is_in(keys, value_set=pa.array(known_by[table.name], pa.string()))
        mine = pc.or_(pc.equal(keys, self.video_id), pc.ends_with(keys, f"/{self.video_id}"))
        for name in [self.video_id] if table.name in BY_VIDEO else self.question_ids:
            mine = pc.or_(mine, pc.starts_with(keys, f"{name}/"))
        return pc.and_not(mine, pc.equal(keys, FORGOTTEN + self.video_id))


def one_video(root: str, named: str) -> str:
    """The id of the video of this name. Raises BadInputError where there is none, or several."""
    found = _by_content(root, named) if os.path.isfile(named) or "://" in named else _by_id(root, named)
    if not found:
        raise BadInputError(f"{named}: no video in {root} has this id, or an id that begins so, or this content")
    if len(found) > 1:
        several = ", ".join(found[:N_NAMED]) + (", ..." if len(found) > N_NAMED else "")
        raise BadInputError(f"{named}: {len(found)} videos in {root} are meant: {several}; say which")
    return found[0]


def video_of(root: str, video_id: str) -> Video:
    """Raises StorageError."""
    questions = Table(root, "questions").read_all(["question_id", "version", "video_id", "task", "question", "references"])
    of_video = questions.filter(pc.equal(questions["video_id"], video_id))["question_id"].to_pylist()
    return Video(video_id, tuple(sorted(set(of_video))), *_files(root, video_id), _judgements(root, video_id, questions))


def _by_id(root: str, beginning: str) -> list[str]:
    """Known ids that begin so, those of forgotten videos too; the one that is just this, where there is one."""
    found: set[str] = set()
    for table in tables_of(root):
        if table.name in BY_VIDEO:
            keys = table.state().live()["key"]
            forgotten = pc.utf8_slice_codeunits(keys.filter(pc.starts_with(keys, FORGOTTEN)), len(FORGOTTEN))
            for of in (forgotten, keys):
                found |= {key.split("/")[0] for key in of.filter(pc.starts_with(of, beginning)).to_pylist()}
    ids = {one for one in found if ID.fullmatch(one)}  # `videos` has rejects of a manifest's lines too
    return [beginning] if beginning in ids else sorted(ids)


def _by_content(root: str, address: str) -> list[str]:
    """Videos, or spans of them, that this file holds."""
    try:
        content = importlib.import_module("pipeline.sources").content_hash(address)
    except VideoDecodeError as error:
        raise BadInputError(str(error)) from error
    files, videos = Table(root, "files").read(["uri", "content"]), Table(root, "videos").read(["video_id", "uri", "start_s", "end_s"])
    holding = files.filter(pc.equal(files["content"], content))["uri"]
    spans = videos.filter(pc.and_(pc.is_in(videos["uri"], value_set=holding), pc.invert(_is_whole(videos))))
    return sorted({*_by_id(root, short_id(content)), *spans["video_id"].to_pylist()})


def _is_whole(videos: pa.Table) -> pa.ChunkedArray:
    return pc.and_(pc.is_null(videos["start_s"]), pc.is_null(videos["end_s"]))


def _files(root: str, video_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys of files that hold the video and nothing that another video is cut from, and the contents that only they have."""
    videos = Table(root, "videos").read_all(["video_id", "version", "uri", "start_s", "end_s"])
    is_own, is_whole = pc.equal(videos["video_id"], video_id), _is_whole(videos)
    own, others = videos.filter(is_own)["uri"], videos.filter(pc.invert(is_own))["uri"]
    spans = videos.filter(pc.and_(pc.invert(is_own), pc.invert(is_whole)))["uri"]
    rows = Table(root, "files").read_all(["uri", "version", "content"])
    whole = pc.and_not(pc.starts_with(rows["content"], video_id), pc.is_in(rows["uri"], value_set=spans))  # its id is how its hash begins
    cut = pc.and_not(pc.is_in(rows["uri"], value_set=own), pc.is_in(rows["uri"], value_set=others))
    mine = pc.or_(whole, cut)
    contents = set(rows.filter(mine)["content"].to_pylist()) - set(rows.filter(pc.invert(mine))["content"].to_pylist())
    return tuple(FILES.keys_of(rows.filter(mine)).to_pylist()), tuple(sorted(contents))


def _judgements(root: str, video_id: str, questions: pa.Table) -> tuple[str, ...]:
    """Keys of what was judged of this video alone, by any judge."""
    tables = tables_of(root)
    if not any(table.name == "judgements" for table in tables):
        return ()
    asked: dict[str, list[Row]] = {}
    for row in questions.to_pylist():  # each version of a question
        asked.setdefault(row["question_id"], []).append(row)
    own: set[str] = set()
    others: set[str] = set()
    for table in tables:
        for row in table.read_all(["question_id", "answer"]).to_pylist() if table.name == "answers" else ():
            for question in asked.get(row["question_id"], ()):
                (own if question["video_id"] == video_id else others).add(judged(question, row["answer"]).judgement_id)
    return tuple(sorted(own - others))
