"""A released checkpoint becomes a hypernetwork that a clip goes through; one that does not fit the VLM is refused with both sizes."""

import json
from pathlib import Path

import pytest
import torch
from clips import write_clip
from released import save_released

from infra import import_checkpoint
from infra.errors import BadInputError
from video2lora import api
from video2lora.checkpoint import load_hypernetwork, read_metadata
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.sampling import Sampling

FITTING = HypernetworkConfig(  # the small VLM's sizes
    n_layers=4, d_vlm=128, target_modules={"down_proj": (384, 128), "k_proj": (128, 128)}, r=3, n_latents=5, n_blocks=2, d_latent=11
)


def released(path: Path, config: HypernetworkConfig = FITTING) -> Path:
    made = Hypernetwork(config, seed=5).requires_grad_(False)
    for module in config.target_modules:
        made.heads[module].scale_b.fill_(0.01)
    return save_released(path, made.state_dict(), config)


def test_a_clip_goes_through_what_was_imported(tmp_path: Path) -> None:
    file = released(tmp_path / "released.pt")
    said = import_checkpoint.run(str(file), vlm="tiny", revision=None, output=tmp_path / "ours")
    n_parameters = sum(parameter.numel() for parameter in Hypernetwork(FITTING).parameters())
    for part in (
        str(file),
        str(tmp_path / "ours"),
        "'made/up-VLM'",
        "for tiny",
        f"{n_parameters / 1e6:.2f} M",
        "down_proj, k_proj",
        "rank 3",
    ):
        assert part in said
    assert "\n" not in said
    assert load_hypernetwork(tmp_path / "ours").config == FITTING

    using = api.load(tmp_path / "ours")
    assert (using.sampling, using.longest_edge_px) == (Sampling(policy="published", n_frames=12, fps=1.0), 384)
    clip = write_clip(tmp_path / "clip.mp4", range(0, 2400, 80))
    adapter = api.internalize(clip, using=using)
    assert sorted(adapter.lora.lora_a) == ["down_proj", "k_proj"]
    assert all(torch.isfinite(factor).all() and factor.any() for factor in adapter.lora.lora_b.values())
    assert adapter.provenance["vlm_digest"] == using.vlm.digest == read_metadata(tmp_path / "ours")["vlm_digest"]


def test_where_it_comes_from_is_kept(tmp_path: Path) -> None:
    file = released(tmp_path / "released.pt")
    import_checkpoint.run(str(file), vlm="tiny", revision=None, output=tmp_path / "ours")
    metadata = read_metadata(tmp_path / "ours")
    shipped = json.loads((Path(api.__file__).parent / "tiny" / "hypernetwork" / "config.json").read_text())["metadata"]
    assert metadata["vlm"] == {"model": "tiny", "revision": None, "dtype": "bfloat16"}
    assert metadata["vlm"].keys() == shipped["vlm"].keys()
    assert metadata["frames"].keys() >= shipped["frames"].keys()  # settings that came since have their defaults
    assert (metadata["made_from"]["file"], metadata["made_from"]["base_model"]) == ("released.pt", "made/up-VLM")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 6}, r"released\.pt: made for a VLM of n_layers 6, got 'tiny' of n_layers 4; --vlm"),
        (
            {"d_vlm": 64, "target_modules": {"down_proj": (192, 64), "k_proj": (64, 128)}},
            r"of d_vlm 64, down_proj \(192, 64\), k_proj \(64, 128\), got 'tiny' of d_vlm 128, down_proj \(384, 128\), k_proj \(128, 128\)",
        ),
        ({"target_modules": {"fc1": (128, 384)}}, r"released\.pt: of another VLM than 'tiny': .*fc1.*expected names among .*down_proj"),
    ],
)
def test_a_checkpoint_of_another_vlm_is_refused_with_both_sizes(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    config = HypernetworkConfig.model_validate(FITTING.model_dump() | changes)
    with pytest.raises(BadInputError, match=message):
        import_checkpoint.run(str(released(tmp_path / "released.pt", config)), vlm="tiny", revision=None, output=tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_file_a_vlm_or_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    file = str(released(tmp_path / "released.pt"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    for source, vlm, revision, output, message in (
        (str(tmp_path / "nowhere.pt"), "tiny", None, "ours", "nowhere.pt: there is no such file"),
        (file, str(tmp_path / "nowhere"), None, "ours", "nowhere"),
        (file, "tiny", "main", "ours", "revision"),
        (file, "tiny", None, "thesis", "not overwriting"),
    ):
        with pytest.raises(BadInputError, match=message):
            import_checkpoint.run(source, vlm=vlm, revision=revision, output=tmp_path / output)
    assert not (tmp_path / "ours").exists()
