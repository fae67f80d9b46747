"""Every step's videos and targets: drawn by seed, the same for any number of workers and after any interruption."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_examples import a_row, an_example, as_read, write_vlm

from infra.artifacts import EXAMPLES, REJECT_REASONS
from infra.errors import BadInputError, StageFailedError, StorageError
from infra.parquet import to_parquet
from training.batches import Batch, HeldExamples, Share, StreamedExamples, draw, example, good_examples
from training.streams import READ, Shard, Source, Window, read_row, read_window, windows
from video2lora.pretrained import load_vlm


def ids(batches: list[Batch]) -> list[str]:
    return [one.video_id for batch in batches for one in batch.examples]


@pytest.fixture(scope="module")
def held() -> HeldExamples:
    return HeldExamples([an_example(i) for i in (4, 2, 0, 3, 1, 5, 6)], seed=11, n_targets=2)


def test_a_row_becomes_frames_and_targets() -> None:
    row = a_row(5, n_frames=3)
    got = example(as_read(row))
    assert got.frames.images.shape == (3, 29, 31, 3)
    assert got.frames.timestamps_s.tolist() == [0.0, 0.5, 1.0] and got.frames.duration_s == 1.5
    assert np.abs(got.frames.images[0, 15, 9].astype(int) - (0, 200, 0)).max() < 30
    assert [one.prompt for one in got.targets] == [one["prompt"] for one in row["targets"]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"jpegs": [b"no picture"]}, "decode_error"),
        ({"jpegs": a_row(0)["jpegs"][:2]}, "decode_error"),
        ({"jpegs": []}, "decode_error"),
        ({"jpegs": None}, "decode_error"),
        ({"targets": []}, "no_targets"),
    ],
)
def test_a_bad_row_is_rejected_with_a_reason(change: dict[str, object], reason: str) -> None:
    block = pa.Table.from_pylist([read_row(a_row(0)), read_row(a_row(1) | change), read_row(a_row(2))], schema=READ)
    rejected: list[dict[str, object]] = []
    good = list(good_examples(block, vlm=None, on_reject=rejected.append))
    assert [one.video_id for one in good] == ["video-000", "video-002"]
    assert [(row["video_id"], row["reason"]) for row in rejected] == [("video-001", reason)] and reason in REJECT_REASONS


def test_targets_are_drawn_by_seed_epoch_and_video_alone() -> None:
    one, other = an_example(0), an_example(1)
    drawn = {(seed, epoch): draw(one, n=2, seed=seed, epoch=epoch) for seed in range(4) for epoch in range(4)}
    assert all(len(set(targets)) == 2 for targets in drawn.values())
    assert draw(one, n=2, seed=1, epoch=2) == drawn[1, 2] and len(set(drawn.values())) == 3
    prompts = [[[t.prompt for t in draw(v, n=1, seed=0, epoch=e)] for e in range(20)] for v in (one, other)]
    assert prompts[0] != prompts[1]
    assert draw(one, n=9, seed=0, epoch=0) == one.targets


def test_an_epoch_holds_each_video_once_in_an_order_of_its_own(held: HeldExamples) -> None:
    got = ids(list(islice(held.batches(Share(0, 1, 3), first_step=0), 7)))
    epochs = [got[:7], got[7:14], got[14:]]
    assert all(sorted(epoch) == [f"video-{i:03d}" for i in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_any_number_of_workers_takes_the_same_steps(held: HeldExamples) -> None:
    def videos_and_targets(batches: list[Batch]) -> list[tuple[str, str]]:
        pairs = [pair for batch in batches for pair in zip(batch.examples, batch.targets, strict=True)]
        return sorted((one.video_id, str(targets)) for one, targets in pairs)

    alone = list(islice(held.batches(Share(0, 1, 6), first_step=0), 5))
    for n in (2, 3, 4):  # 6 videos a step do not divide among 4
        parts = [list(islice(held.batches(Share(rank, n, 6), first_step=0), 5)) for rank in range(n)]
        for step, whole in enumerate(alone):
            assert videos_and_targets([part[step] for part in parts]) == videos_and_targets([whole])


def test_parts_of_a_batch_hold_every_target_once(held: HeldExamples) -> None:
    batch = next(held.batches(Share(0, 1, 5), first_step=0))
    for n, sizes in ((1, [5]), (2, [2, 3]), (4, [1, 1, 1, 2]), (7, [1] * 5 + [0, 0])):
        parts = batch.parts(n)
        assert [len(part.examples) if part.counts else 0 for part in parts] == sizes and all(part.examples for part in parts)
        assert tuple(one for part in parts if part.counts for one in part.targets) == batch.targets
        assert sum(part.n_targets for part in parts) == batch.n_targets
    nothing = Batch(batch.examples[:1], batch.targets[:1], counts=False)
    assert sum(part.n_targets for part in nothing.parts(3)) == 0


def test_a_continued_run_goes_on_with_the_next_video(held: HeldExamples) -> None:
    whole = list(islice(held.batches(Share(1, 2, 4), first_step=0), 9))
    assert list(islice(held.batches(Share(1, 2, 4), first_step=4), 5)) == whole[4:]


def test_the_order_does_not_depend_on_how_the_examples_came() -> None:
    examples = [an_example(i) for i in range(5)]
    one, other = (HeldExamples(given, seed=3, n_targets=1) for given in (examples, examples[::-1]))
    share = Share(0, 1, 4)
    assert list(islice(one.batches(share, first_step=0), 4)) == list(islice(other.batches(share, first_step=0), 4))


SHARDS = ((0, 1, 2, 3), (4, 5), (6, 7, 8), (9,), (10, 11, 12), (13, 14))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Shards of several sizes with 15 training videos, of which one cannot be decoded, and a validation video in each."""
    shards = []
    for number, videos in enumerate(SHARDS):
        rows = [a_row(i) for i in videos] + [a_row(100 + number, split="validation")]
        if 5 in videos:
            rows[videos.index(5)]["jpegs"] = [b"no picture"] * 3
        (tmp_path / f"{number}.parquet").write_bytes(to_parquet(pa.Table.from_pylist(rows, schema=EXAMPLES.schema)))
        shards.append(Shard(str(tmp_path / f"{number}.parquet"), len(videos)))
    return Source(tuple(shards), "train")


def streamed(source: Source, *, first: int, n: int, seed: int = 7) -> list[dict[str, Any]]:
    """`n` rows from a place on, as Ray Data hands them on."""
    blocks = (block for one in windows(source, seed=seed, first_place=first, n_places=n) for block in read_window(one, source))
    return [{**row, "detail": None} for block in blocks for row in block.to_pylist()][:n]  # which has an object's address


def test_a_stream_holds_each_video_once_an_epoch_and_goes_on_from_any_place(source: Source) -> None:
    rows = streamed(source, first=0, n=50)
    assert [row["place"] for row in rows] == list(range(50))
    videos = [row["video_id"] for row in rows]
    epochs = [videos[:15], videos[15:30], videos[30:45]]
    assert all(sorted(epoch) == [f"video-{i:03d}" for i in range(15)] for epoch in epochs) and len({tuple(one) for one in epochs}) == 3
    assert [row["reason"] for row in rows if row["video_id"] == "video-005"] == ["decode_error"] * videos.count("video-005")
    for first in (1, 11, 15, 29, 38):
        assert streamed(source, first=first, n=12) == rows[first : first + 12]
    assert streamed(source, first=0, n=15, seed=8) != rows[:15]


class Dealt:
    """What Ray Data's splits are to the reader: the rows from a place on, every n-th."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def iter_batches(self, *, batch_size: int, **_: object) -> Iterator[pa.Table]:
        for at in range(0, len(self.rows), batch_size):
            yield pa.Table.from_pylist(self.rows[at : at + batch_size], schema=READ)


def dealt(source: Source, share: Share, *, first_step: int, n_steps: int, on_reject: Any = print) -> list[Batch]:
    n = n_steps * share.per_step + source.n_rows  # an epoch more, as training has it
    rows = streamed(source, first=first_step * share.per_step, n=n)[share.rank :: share.n_workers]
    reader: Any = Dealt(rows)
    examples = StreamedExamples(reader, n_rows=source.n_rows, seed=7, n_targets=2, vlm=None, on_reject=on_reject)
    return list(islice(examples.batches(share, first_step=first_step), n_steps))


def test_streamed_steps_are_the_same_for_any_number_of_workers_and_after_any_interruption(source: Source) -> None:
    rejected: list[dict[str, Any]] = []
    alone = dealt(source, Share(0, 1, 5), first_step=0, n_steps=7, on_reject=rejected.append)
    assert {row["video_id"] for row in rejected} == {"video-005"}
    for n in (2, 3):
        parts = [dealt(source, Share(rank, n, 5), first_step=2, n_steps=5) for rank in range(n)]
        for step, whole in enumerate(alone[2:]):
            pairs = {(one.video_id, drawn) for part in parts for one, drawn in zip(part[step].examples, part[step].targets, strict=True)}
            assert pairs == {(one.video_id, drawn) for one, drawn in zip(whole.examples, whole.targets, strict=True)}


def test_a_share_without_a_usable_video_counts_for_nothing(source: Source) -> None:
    batches = dealt(source, Share(0, 1, 1), first_step=0, n_steps=15)
    (empty,) = [batch for batch in batches if not batch.counts]
    assert empty.n_targets == 0 and len(empty.examples) == 1


def test_a_run_that_goes_on_at_a_row_that_cannot_be_used_takes_the_same_steps(source: Source) -> None:
    """Where the stand-in for it, which counts for nothing, is not the last one before."""
    batches = dealt(source, Share(0, 1, 1), first_step=0, n_steps=15)
    (at,) = [step for step, batch in enumerate(batches) if not batch.counts]
    stand_in, *others = dealt(source, Share(0, 1, 1), first_step=at, n_steps=15 - at)
    assert not stand_in.counts and stand_in.n_targets == 0 and others == batches[at + 1 :]
    nothing = [{**row, "reason": "decode_error"} for row in streamed(source, first=0, n=20)]
    reader: Any = Dealt(nothing)
    rejected: list[dict[str, Any]] = []
    examples = StreamedExamples(reader, n_rows=15, seed=7, n_targets=2, vlm=None, on_reject=rejected.append)
    with pytest.raises(BadInputError, match="not one of a whole epoch's rows can be used"):
        next(examples.batches(Share(0, 1, 5), first_step=0))
    assert len(rejected) == 20, "a batch, and an epoch behind it"


def test_what_the_vlm_cannot_read_is_rejected(tmp_path: Path) -> None:
    write_vlm(tmp_path)
    vlm, rows = load_vlm(str(tmp_path)), [as_read(a_row(i)) for i in range(4)]
    rows[1]["targets"][2] = {**rows[1]["targets"][2], "target": "It is <image>red."}
    rows[2]["targets"][0] = {**rows[2]["targets"][0], "prompt": "What colour is it? " * vlm.n_positions}
    rows[3] = as_read(a_row(3, n_frames=vlm.n_positions // 4))
    rejected: list[dict[str, Any]] = []
    block = pa.Table.from_pylist(rows, schema=READ)
    assert [one.video_id for one in good_examples(block, vlm=vlm, on_reject=rejected.append)] == ["video-000"]
    assert [(row["video_id"], row["reason"]) for row in rejected] == [
        ("video-001", "bad_row"),
        ("video-002", "prompt_too_long"),
        ("video-003", "prompt_too_long"),
    ]
    assert "the target 'It is <image>red.' of 'Which colour does the square have?' has 1 image tokens" in rejected[0]["detail"]


def test_rows_out_of_their_places_are_refused(source: Source) -> None:
    reader: Any = Dealt(streamed(source, first=0, n=10)[1:])
    examples = StreamedExamples(reader, n_rows=15, seed=7, n_targets=2, vlm=None, on_reject=print)
    with pytest.raises(StageFailedError, match="got the video of place 1, expected that of 0"):
        next(examples.batches(Share(0, 1, 5), first_step=0))


def test_a_shard_with_other_rows_than_it_had_is_refused(source: Source) -> None:
    with pytest.raises(StorageError, match="got 4 rows of train, expected 3"):
        list(read_window(Window((Shard(source.shards[0].address, 3),)), source))


def test_targets_of_some_tasks_alone(source: Source) -> None:
    row = a_row(0)
    row["targets"] = [{**one, "task": task} for one, task in zip(row["targets"], ("question", "summary", "question"), strict=True)]
    assert [one["prompt"] for one in read_row(row, tasks=("summary",))["targets"]] == [row["targets"][1]["prompt"]]
    assert read_row(row, tasks=("caption",))["detail"] == "the row has no target of caption"
