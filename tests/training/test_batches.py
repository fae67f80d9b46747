"""Every step's videos and targets: drawn by seed, the same for any number of workers and after any interruption."""

from itertools import islice

import numpy as np
import pytest
from made_examples import a_row, an_example

from infra.artifacts import EXAMPLES, REJECT_REASONS
from training.batches import Batch, HeldExamples, Share, decode_block, decode_row, draw, example, good_examples


def ids(batches: list[Batch]) -> list[str]:
    return [one.video_id for batch in batches for one in batch.examples]


@pytest.fixture(scope="module")
def held() -> HeldExamples:
    return HeldExamples([an_example(i) for i in (4, 2, 0, 3, 1, 5, 6)], seed=11, n_targets=2)


def test_a_row_becomes_frames_and_targets() -> None:
    row = a_row(5, n_frames=3)
    got = example(decode_row(row))
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
    import pyarrow as pa

    block = pa.Table.from_pylist([a_row(0), a_row(1) | change, a_row(2)], schema=EXAMPLES.schema)
    rejected: list[dict[str, object]] = []
    good = list(good_examples(decode_block(block), rejected.append))
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
    for n in (2, 3):
        parts = [list(islice(held.batches(Share(rank, n, 6 // n), first_step=0), 5)) for rank in range(n)]
        for step, whole in enumerate(alone):
            assert videos_and_targets([part[step] for part in parts]) == videos_and_targets([whole])


def test_a_continued_run_goes_on_with_the_next_video(held: HeldExamples) -> None:
    whole = list(islice(held.batches(Share(1, 2, 2), first_step=0), 9))
    assert list(islice(held.batches(Share(1, 2, 2), first_step=4), 5)) == whole[4:]


def test_the_order_does_not_depend_on_how_the_examples_came() -> None:
    examples = [an_example(i) for i in range(5)]
    one, other = (HeldExamples(given, seed=3, n_targets=1) for given in (examples, examples[::-1]))
    share = Share(0, 1, 4)
    assert list(islice(one.batches(share, first_step=0), 4)) == list(islice(other.batches(share, first_step=0), 4))
