"""What travels: the recipe whole, the environment without what is secret, paths that hold where the job will run, our packages."""

import socket
from pathlib import Path

import pytest
import yaml

from infra.config import Recipe, Where, load_recipe, variables, where_of
from infra.errors import BadInputError
from infra.shipped import PACKAGES, handed_on, is_own_address, packed, placed, work

S3 = Where(data="s3://bucket/data")


def test_the_recipe_arrives_as_it_left(tmp_path: Path) -> None:
    recipe = load_recipe("evaluation")
    sent = work("train", None, recipe, S3)
    (tmp_path / "recipe.yaml").write_text(sent.files()["recipe.yaml"])
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe
    assert sent.arguments("/etc/v/") == ["train", "--recipe", "/etc/v/recipe.yaml"]


def test_a_file_of_prompts_goes_along_and_is_part_of_the_work(tmp_path: Path) -> None:
    prompts = tmp_path / "mine.yaml"
    prompts.write_text("one: 1\n")
    recipe = Recipe.model_validate({"teacher": {"prompts": str(prompts)}})
    sent = work("targets", None, recipe, S3)
    assert sent.files("/etc/v/")["prompts.yaml"] == "one: 1\n"
    assert yaml.safe_load(sent.files("/etc/v/")["recipe.yaml"])["teacher"]["prompts"] == "/etc/v/prompts.yaml"
    prompts.write_text("one: 2\n")
    assert work("targets", None, recipe, S3).run != sent.run
    prompts.unlink()
    with pytest.raises(BadInputError, match=r"teacher.prompts: got .*mine.yaml, which is no file"):
        work("targets", None, recipe, S3)


def test_the_same_work_has_the_same_name_and_other_work_another() -> None:
    names = {
        work(command, source, recipe, where).run
        for command, source, recipe, where in [
            ("run", None, Recipe(), S3),
            ("run", "s3://videos", Recipe(), S3),
            ("retrain", None, Recipe(), S3),
            ("run", None, load_recipe("demo"), S3),
            ("run", None, Recipe(), Where(data="s3://bucket/other")),
        ]
    }
    assert len(names) == 5
    again = work("run", None, Recipe(), S3.model_copy(update={"training_workers": 7}))  # on other machines, the same work
    assert again.run in names
    assert Where(run=again.run).run == again.run  # a name that a run may have


@pytest.mark.parametrize(
    ("command", "source", "told"),
    [("ls", None, "got command 'ls'"), ("frames", "s3://v", "frames takes none"), ("manifest", None, "manifest needs a SOURCE")],
)
def test_what_cannot_be_submitted_is_refused(command: str, source: str | None, told: str) -> None:
    with pytest.raises(BadInputError, match=told):
        work(command, source, Recipe(), S3)


def test_secrets_and_what_is_of_this_process_stay_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {
        "VIDEO2LORA_DATA": "s3://bucket/data",
        "VIDEO2LORA_WEBHOOK": "https://hooks.example.com/sesame",
        "VIDEO2LORA_RUN": "other",
        "VIDEO2LORA_TEACHER_ENGINE_PROCESS": "false",
        "VIDEO2LORA_TRAINING_WORKERS": "4",
        "MLFLOW_TRACKING_URI": "postgresql://me:sesame@db/mlflow",
        "RAY_ADDRESS": "10.0.0.1:6379",
        "AWS_SECRET_ACCESS_KEY": "sesame",
    }.items():
        monkeypatch.setenv(name, value)
    sent = work("train", None, Recipe(), Where())
    assert sent.environment == {
        "VIDEO2LORA_DATA": "s3://bucket/data",
        "VIDEO2LORA_TEACHER_ENGINE_PROCESS": "False",
        "VIDEO2LORA_TRAINING_WORKERS": "4",
        "VIDEO2LORA_RUN": sent.run,
    }
    said = capsys.readouterr()
    assert "MLFLOW_TRACKING_URI may hold a password (an address with @ or ?) and is not handed on" in said.err
    assert "sesame" not in said.err + said.out


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg2://mlflow:Zm9/vYmFy@db/mlflow",
        "https://sesame@host/v1",
        "https://host/v1?key=sesame",
        "mysql://db/mlflow?user=me&password=sesame",
        "s3://me:sesame@bucket/data",
    ],
)
def test_no_address_that_may_hold_a_secret_is_handed_on(address: str) -> None:
    assert handed_on(Where(mlflow_tracking_uri=address, teacher_endpoint=address)) == {}


def test_addresses_without_secrets_are_handed_on() -> None:
    where = Where(data="s3://bucket/me@work/what?", teacher_endpoint="https://host:8000/v1", mlflow_tracking_uri="http://mlflow.internal")
    assert where_of(handed_on(where)) == where


def test_what_is_handed_on_is_read_back_as_it_was() -> None:
    where = Where(data="s3://b/d", teacher_engine_process=False, stall_s=12.5, teacher_gpus=0.5, training_workers=3)
    assert where_of(handed_on(where)) == where


def test_a_clusters_settings_hold_where_nothing_is_set_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO2LORA_TEACHER_GPUS", "2")
    where = where_of(
        {"VIDEO2LORA_DATA": "s3://theirs", "VIDEO2LORA_TEACHER_GPUS": "1", "MLFLOW_TRACKING_URI": "http://mlflow", "OTHER": "x"}
    )
    assert variables(where) == {"VIDEO2LORA_DATA": "s3://theirs", "VIDEO2LORA_TEACHER_GPUS": "2.0", "MLFLOW_TRACKING_URI": "http://mlflow"}
    with pytest.raises(BadInputError, match="the cluster's environment: VIDEO2LORA_TRAINING_WORKERS"):
        where_of({"VIDEO2LORA_TRAINING_WORKERS": "none"})


def test_a_folder_of_this_machine_is_refused_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    sent = work("frames", None, Recipe(), Where(data="data"))
    with pytest.raises(BadInputError, match=r"VIDEO2LORA_DATA: got 'data', a folder of this machine"):
        placed(sent, is_here=False)
    assert placed(sent, is_here=True).where.data == str(Path("data").absolute())
    assert capsys.readouterr().err == ""
    shared = work("manifest", "/mnt/videos", Recipe(), Where(data="/mnt/data"))
    assert placed(shared, is_here=False) == shared
    assert "VIDEO2LORA_DATA: /mnt/data must be a file system that every node" in (said := capsys.readouterr().err)
    assert "SOURCE: /mnt/videos must be" in said
    with pytest.raises(BadInputError, match="SOURCE: got 'videos'"):
        placed(work("manifest", "videos", Recipe(), S3), is_here=False)
    for source, data in (("s3://CHANGE-ME/videos", "s3://mine"), ("s3://videos", "s3://CHANGE-ME/data")):
        with pytest.raises(BadInputError, match="CHANGE-ME"):
            placed(work("manifest", source, Recipe(), Where(data=data)), is_here=False)


def test_a_models_folder_is_named_from_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models" / "vlm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match=r"recipe: vlm.model: got 'models/vlm', expected an absolute path"):
        placed(work("train", None, Recipe.model_validate({"vlm": {"model": "models/vlm"}}), S3), is_here=True)
    absolute = Recipe.model_validate({"vlm": {"model": str(tmp_path / "models/vlm")}})
    placed(work("train", None, absolute, S3), is_here=False)
    assert "recipe: vlm.model" in capsys.readouterr().err


def test_the_packages_go_along_with_their_data(tmp_path: Path) -> None:
    with packed(work("train", None, Recipe(), S3), with_code=True) as folder:
        there = {path.relative_to(folder).parts[0] for path in Path(folder).rglob("*")}
        assert there == {*PACKAGES, "recipe.yaml"}
        for data in ("infra/recipes/demo.yaml", "teacher/prompt_sets/mixed.yaml", "video2lora/tiny/vlm/model.safetensors"):
            assert Path(folder, data).is_file()
        assert not list(Path(folder).rglob("__pycache__"))
        assert sum(path.stat().st_size for path in Path(folder).rglob("*")) < 100e6  # Ray takes 500 MB
    with packed(work("train", None, Recipe(), S3), with_code=False) as folder:
        assert [path.name for path in Path(folder).iterdir()] == ["recipe.yaml"]
    assert not Path(folder).exists()


def test_which_addresses_are_this_machines() -> None:
    assert is_own_address("127.0.0.1")
    assert is_own_address("::1") or not socket.has_ipv6
    assert not is_own_address("198.51.100.7")  # of a network that is for examples
