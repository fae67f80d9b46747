"""What the engine is made of, short of vLLM: the model's description and the preprocessing. `test_targets` runs the engine itself."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.config import TeacherSettings
from infra.errors import BadInputError
from teacher.engine import find_model, max_model_len, pictures
from video2lora.pixels import squash
from video2lora.pretrained import load_vlm


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=95, subsampling=0)
    return file.getvalue()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 61, 83, 3), dtype=np.uint8)


def test_a_folder_is_described_as_transformers_reads_it(vlm_folder: Path) -> None:
    model, vlm = find_model(TeacherSettings(model=str(vlm_folder))), load_vlm(str(vlm_folder))
    text = vlm.model.config.text_config
    assert (model.image_size_px, model.n_image_tokens) == (vlm.family.image_size_px, vlm.family.n_image_tokens)
    assert model.max_positions == text.max_position_embeddings
    assert model.n_kv_values == 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    assert model.revision is None


def test_the_smaller_of_recipe_and_model_limits_the_context(vlm_folder: Path) -> None:
    settings = TeacherSettings(model=str(vlm_folder), max_model_len=8192)
    assert max_model_len(find_model(settings), settings) == 1024
    assert max_model_len(find_model(settings), settings.model_copy(update={"max_model_len": 96})) == 96


def test_identity_follows_weights_and_tokenizer_and_nothing_else(vlm_folder: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return find_model(TeacherSettings(model=str(folder))).identity.split("@")[1]

    copy = Path(shutil.copytree(vlm_folder, tmp_path / "copy"))
    (copy / "training.json").write_text("{}")
    assert digest(copy) == digest(vlm_folder)
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + "\n")
    assert digest(copy) != digest(vlm_folder)


def test_what_is_no_model_is_refused_with_the_setting(vlm_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(vlm_folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != "vision_config"}))
    (tmp_path / "empty").mkdir()
    for wrong in (copy, tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(BadInputError, match=r"teacher\.model"):
            find_model(TeacherSettings(model=str(wrong)))
    with pytest.raises(BadInputError, match=r"teacher\.revision: got 'abc' for .*, which is a folder"):
        find_model(TeacherSettings(model=str(vlm_folder), revision="abc"))


def test_pictures_are_the_methods_squares_named_by_content(images: np.ndarray) -> None:
    jpegs = [jpeg(image) for image in images]
    found = pictures([*jpegs, jpegs[0]], size_px=48)
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in jpegs])
    assert np.array_equal(np.stack([np.asarray(image) for image in found.images[:3]]), squash(decoded, 48))
    assert found.image_ids[0] == found.image_ids[3]
    assert len(set(found.image_ids)) == 3


def test_damaged_frames_raise(images: np.ndarray) -> None:
    whole = jpeg(images[0])
    for damaged in (b"", b"no picture", whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="frame 1: "):
            pictures([whole, damaged], size_px=48)
