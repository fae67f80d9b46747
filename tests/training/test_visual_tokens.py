"""What the vision tower made of a video, kept: the same numbers to the bit, made once, of the VLM that reads them or refused."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_examples import a_row, as_read, fill, write_examples, write_vlm

from infra import retry
from infra.artifacts import VISUAL_TOKENS
from infra.config import Recipe, TrainingSettings, VLMSettings, Where
from infra.errors import BadInputError
from infra.sets import visual_tokens_made, visual_tokens_set
from training import visual_tokens
from training.batches import example
from training.loss import Encoder
from training.visual_tokens import as_tensor, read_tokens, token_files, tokens_row
from video2lora.jpeg import from_jpegs
from video2lora.pretrained import load_vlm
from video2lora.sampling import Frames
from video2lora.vlm import FrozenVLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm")
    write_vlm(folder)
    return folder


@pytest.fixture(scope="module")
def ray_of_two_cpus() -> Iterator[None]:
    from infra.cluster import cluster

    with cluster(Where(n_cpus=2)):
        yield


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def vlm(request: pytest.FixtureRequest, folder: Path) -> FrozenVLM:
    return load_vlm(str(folder), dtype=request.param)


def frames_of(row: dict[str, Any]) -> Frames:
    return Frames(from_jpegs(row["jpegs"]), np.array(row["timestamps_s"]), row["duration_s"])


def stored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As they come back from a file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=VISUAL_TOKENS.schema), buffer)
    found: list[dict[str, Any]] = pq.read_table(pa.BufferReader(buffer.getvalue())).to_pylist()
    return found


def test_tokens_come_back_to_the_bit(vlm: FrozenVLM) -> None:
    one = a_row(3, n_frames=5)
    expected = vlm.frame_tokens([frames_of(one)])
    got = as_tensor(stored([tokens_row(one, vlm)])[0], vlm)
    assert got.dtype == expected.dtype and got.shape == expected.shape and len(got) == 5
    assert torch.equal(got, expected)


@pytest.mark.parametrize("keeps", [True, False])
def test_features_are_those_of_the_pictures_to_the_bit(vlm: FrozenVLM, keeps: bool) -> None:
    """Without the pictures, which are 0 x 0 px then."""
    seen = [example(as_read(a_row(i, n_frames=n))) for i, n in ((2, 3), (5, 7), (1, 1))]
    rows = stored([tokens_row(a_row(i, n_frames=n), vlm) for i, n in ((2, 3), (5, 7), (1, 1))])
    unseen = [
        replace(one, frames=replace(one.frames, images=one.frames.images[:, :0, :0]), visual_tokens=as_tensor(row, vlm))
        for one, row in zip(seen, rows, strict=True)
    ]
    with_pictures, without = (Encoder(vlm, opens_answer=True, keeps=keeps)(examples) for examples in (seen, unseen))
    assert torch.equal(without.hidden, with_pictures.hidden) and torch.equal(without.mask, with_pictures.mask)


def test_tokens_of_another_vlm_or_dtype_are_refused(vlm: FrozenVLM, folder: Path, tmp_path: Path) -> None:
    (row,) = stored([tokens_row(a_row(1), vlm)])
    other_dtype = {"float32": "bfloat16", "bfloat16": "float32"}[vlm.dtype]
    with pytest.raises(
        BadInputError, match=rf"video-001 are by the VLM {vlm.digest}\+{vlm.dtype}, and .* is {vlm.digest}\+{other_dtype} now"
    ):
        as_tensor(row, load_vlm(str(folder), dtype=other_dtype))
    with pytest.raises(BadInputError, match="video-001 are by the VLM"):
        as_tensor(row, load_vlm("tiny", dtype=vlm.dtype))


def test_another_vlm_dtype_or_sampling_is_another_set(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(vlm=VLMSettings(model=str(folder)))
    table = visual_tokens.table_of(recipe, Where(data="d"))
    copy = Path(shutil.copytree(folder, tmp_path / folder.name))
    assert visual_tokens.table_of(recipe.model_copy(update={"vlm": VLMSettings(model=str(copy))}), Where(data="d")) == table
    shutil.copytree(Path(visual_tokens.__file__).parents[1] / "video2lora" / "tiny" / "vlm", copy, dirs_exist_ok=True)
    others = [
        recipe.model_copy(update={"vlm": VLMSettings(model=str(copy))}),
        recipe.model_copy(update={"vlm": VLMSettings(model=str(folder), dtype="bfloat16")}),
        recipe.model_copy(update={"frames": recipe.frames.model_copy(update={"longest_edge_px": 383})}),
    ]
    assert len({table, *(visual_tokens.table_of(one, Where(data="d")) for one in others)}) == 4


def test_tokens_are_found_by_the_log_and_read_in_the_order_that_is_asked(folder: Path, tmp_path: Path) -> None:
    recipe, vlm = Recipe(vlm=VLMSettings(model=str(folder))), load_vlm(str(folder))
    table = visual_tokens_set(recipe, str(tmp_path), weights="w")
    rows = [tokens_row(a_row(i, n_frames=2 + i), vlm) for i in range(5)]
    fill(table, rows, made=visual_tokens_made(recipe, weights="w"))
    asked = ["video-003", "video-000", "video-009", "video-002"]
    files = token_files(table, asked)
    assert sorted(map(sorted, files.values())) == [["video-000", "video-002"], ["video-003"]]
    got = read_tokens(list(files), asked)
    assert got.to_pylist() == [rows[3], rows[0], rows[2]]
    assert read_tokens([], []).schema == VISUAL_TOKENS.schema


@pytest.mark.slow
def test_the_stage_makes_what_is_missing_and_nothing_else(folder: Path, tmp_path: Path, ray_of_two_cpus: None) -> None:
    """Two files of examples; a test video; pictures that are none; then one more video, then nothing."""
    data, recipe = tmp_path / "data", Recipe(vlm=VLMSettings(model=str(folder)))
    where = Where(data=str(data), training_workers=2)
    rows = [a_row(i, split="test" if i == 4 else "validation" if i == 3 else "train") for i in range(8)]
    rows[5] |= {"jpegs": [b"no picture"]}
    examples = write_examples(recipe, str(data), rows[:7])
    assert visual_tokens.run(recipe, where) == "visual_tokens: 5 rows, 1 rejects (decode_error 1)"
    table, vlm = visual_tokens.table_of(recipe, where), load_vlm(str(folder))
    for row in table.read().to_pylist():
        assert torch.equal(as_tensor(row, vlm), vlm.frame_tokens([frames_of(rows[int(row["video_id"][-3:])])]))
    orders = [[name for name in ids(path) if name not in ("video-004", "video-005")] for path in examples.shards()]
    assert sorted(map(ids, table.shards())) == sorted(orders), "a file for each, in the same order"
    first = set(table.shards())
    write_examples(recipe, str(data), rows)  # one more
    assert visual_tokens.run(recipe, where) == "visual_tokens: 6 rows, 1 rejects (decode_error 1)"
    assert [ids(path) for path in set(table.shards()) - first] == [["video-007"]]
    version = table.state().version
    visual_tokens.run(recipe, where)
    assert table.state().version == version, "nothing was left to do"


@pytest.mark.slow
def test_rejects_are_tried_again(folder: Path, tmp_path: Path, ray_of_two_cpus: None, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"vlm": VLMSettings(model=str(folder)), "training": TrainingSettings(visual_tokens="stored")}
    recipe, where = Recipe(**settings), Where(data=str(tmp_path), training_workers=1)
    write_examples(recipe, str(tmp_path), [a_row(0), a_row(1), a_row(2) | {"jpegs": [b"no picture"]}])
    assert visual_tokens.run(recipe, where) == "visual_tokens: 2 rows, 1 rejects (decode_error 1)"
    table = visual_tokens.table_of(recipe, where)
    before = table.state().attempt
    retry.run(recipe, where, reason="decode_error", stage="encode")
    told = capsys.readouterr().out
    assert "encode: 1 rejects of reason decode_error are tried again" in told
    assert "visual_tokens: 2 rows, 1 rejects (decode_error 1)" in told and table.state().attempt > before and table.is_complete()


@pytest.mark.slow
def test_a_damaged_vlm_is_told_in_the_workers_own_words(folder: Path, tmp_path: Path, ray_of_two_cpus: None) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "vlm"))
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    recipe = Recipe(vlm=VLMSettings(model=str(copy)))
    write_examples(recipe, str(tmp_path), [a_row(0), a_row(1)])
    with pytest.raises(BadInputError, match="a damaged or unknown model folder"):
        visual_tokens.run(recipe, Where(data=str(tmp_path), training_workers=1))


def ids(path: str) -> list[str]:
    names: list[str] = pq.read_table(path)["video_id"].to_pylist()
    return names
