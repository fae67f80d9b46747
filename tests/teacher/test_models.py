"""Which model writes: what its config says, which weights it is, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from infra.config import TeacherSettings
from infra.errors import BadInputError
from teacher.models import find_model, max_model_len
from teacher.write_targets import teacher_name
from tests.teacher.tiny_llava import save_llava
from video2lora.pretrained import load_vlm


def test_a_smolvlms_folder_is_described_as_transformers_reads_it(vlm_folder: Path) -> None:
    model, vlm = find_model(TeacherSettings(model=str(vlm_folder))), load_vlm(str(vlm_folder))
    text = vlm.model.config.text_config
    assert model.smolvlm is not None
    assert (model.smolvlm.image_size_px, model.smolvlm.n_image_tokens) == (vlm.family.image_size_px, vlm.family.n_image_tokens)
    assert model.max_positions == text.max_position_embeddings
    assert model.n_kv_values == 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    assert model.revision is None


def test_a_model_of_another_family_is_described_by_its_language_model(tmp_path: Path) -> None:
    save_llava(tmp_path)
    model = find_model(TeacherSettings(model=str(tmp_path)))
    assert (model.smolvlm, model.max_positions, model.n_kv_values) == (None, 1024, 2 * 2 * 2 * 32)


def test_the_smaller_of_recipe_and_model_limits_the_context(vlm_folder: Path) -> None:
    settings = TeacherSettings(model=str(vlm_folder), max_model_len=8192)
    assert max_model_len(find_model(settings), settings) == 1024
    assert max_model_len(find_model(settings), settings.model_copy(update={"max_model_len": 96})) == 96
    elsewhere = TeacherSettings(model="some/model", served_by="endpoint", max_model_len=5000)
    assert max_model_len(find_model(elsewhere), elsewhere) == 5000


def test_identity_follows_weights_and_tokenizer_and_nothing_else(vlm_folder: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return find_model(TeacherSettings(model=str(folder))).identity.split("@")[1]

    copy = Path(shutil.copytree(vlm_folder, tmp_path / "copy"))
    (copy / "training.json").write_text("{}")
    assert digest(copy) == digest(vlm_folder)
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + "\n")
    assert digest(copy) != digest(vlm_folder)


def test_an_endpoints_model_is_known_by_name_and_what_the_recipe_says_of_its_revision() -> None:
    for revision, name in ((None, "org/model@endpoint"), ("v2", "org/model@v2")):
        settings = TeacherSettings(model="org/model", revision=revision, served_by="endpoint")
        assert teacher_name(find_model(settings), settings) == name


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
