"""A VLM, a hypernetwork of the published sizes that is trained, and made videos with targets: what the benchmark of training runs on."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.models import SIZES, random_vlm
from benchmarks.training_rivals import Bench, Video
from training.batches import Target
from training.loss import TargetLoss
from video2lora.hypernetwork import Hypernetwork, HypernetworkConfig
from video2lora.jpeg import to_jpeg
from video2lora.pixels import fit
from video2lora.pretrained import load_vlm
from video2lora.sampling import Frames
from video2lora.smolvlm import SmolVLM
from video2lora.vlm import FrozenVLM

LONGEST_EDGE_PX = 384  # published
JPEG_QUALITY = 95  # of the recipes' frames
TARGET_TOKENS = 64  # the published teacher's limit
PROMPT = "Describe what happens in the video."
SENTENCE = "one day a man in a red shirt goes to the door of a house and two dogs run after him while it is snowing"
DEMO: dict[str, Any] = {  # of its recipe
    "r": 8, "n_latents": 16, "n_blocks": 3, "d_latent": 128, "n_heads": 4, "n_kv_heads": 4, "d_head": 32, "normalise_features": True,
}  # fmt: skip


def made_bench(model: str, *, n_videos: int, n_frames: int, n_targets: int, device: str, clips: Path | None = None) -> Bench:
    """`model`: `tiny`, a size with random weights, or a model folder; `clips`: where the clip lies, or is made. Raises ValueError."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    vlm = made_vlm(model, device=device, dtype=dtype)
    sizes = vlm.module_sizes(["down_proj"])
    config = HypernetworkConfig(n_layers=len(vlm.layers), d_vlm=vlm.d_vlm, target_modules=sizes, **(DEMO if model == "tiny" else {}))
    hypernetwork = Hypernetwork(config, checkpoint_projection=device == "cuda").to(device)
    for name in sizes:  # fresh ones are zero, and so are half of their gradients
        torch.nn.init.constant_(hypernetwork.heads[name].scale_b, 1e-3)
        torch.nn.init.normal_(hypernetwork.static[name].lora_b, std=1e-3)
    student = TargetLoss(hypernetwork, vlm, dtype="bfloat16" if device == "cuda" else "float32")
    video = made_video(vlm, n_frames=n_frames, n_targets=n_targets, clips=clips)
    videos = [Video(f"video-{i}", video.clip, video.jpegs, video.tokens, video.targets, video.edge_px) for i in range(n_videos)]
    return Bench(vlm, student, videos, torch.optim.AdamW(student.parameters(), lr=1e-6))


def made_vlm(model: str, *, device: str, dtype: torch.dtype) -> FrozenVLM:
    """Raises ValueError where there is no such model."""
    if model in SIZES:
        return FrozenVLM(SmolVLM(*random_vlm(model, dtype=dtype, device=device)), f"random {model}", "random")
    return load_vlm(model, dtype=str(dtype).removeprefix("torch."), device=device)


def made_video(vlm: FrozenVLM, *, n_frames: int, n_targets: int, clips: Path | None) -> Video:
    """Frames of a moving picture at 720p, and beside them a clip of 5 s at 720p that PyAV makes, in H.264 with one keyframe."""
    edge_px = min(LONGEST_EDGE_PX, vlm.family.image_size_px)  # type: ignore[attr-defined]
    clip = None
    if clips is not None:
        from benchmarks.decoders import make_clip

        clip = make_clip("one GOP, 5 s", clips, None).path
    jpegs = tuple(to_jpeg(Image.fromarray(fit(moving(i), edge_px)), quality=JPEG_QUALITY) for i in range(n_frames))
    images = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in jpegs])
    tokens = vlm.frame_tokens([Frames(images, np.linspace(0, 4.9, n_frames), 5.0)]).cpu()
    targets = tuple(Target("caption", PROMPT, a_text(vlm, i)) for i in range(n_targets))
    return Video("video", clip, jpegs, tokens, targets, edge_px)


def moving(i: int) -> np.ndarray:
    """A picture of 720p with gradients, edges and a little noise, which its number shifts."""
    y, x = np.mgrid[:720, :1280]
    shade = np.stack([(x + 40 * i) % 256, (y * 2 + 20 * i) % 256, ((x + y) // 64 * 32 + 8 * i) % 256], axis=-1)
    return (shade + np.random.default_rng(i).integers(0, 8, shade.shape)).clip(0, 255).astype(np.uint8)


def a_text(vlm: FrozenVLM, number: int) -> str:
    """Of TARGET_TOKENS tokens or a word more; another for each number."""
    words, text = SENTENCE.split(), ""
    while len(vlm.tokenizer.encode(text, add_special_tokens=False)) < TARGET_TOKENS:
        text += f" {words[number % len(words)]}"
        number += 1
    return text.strip()
