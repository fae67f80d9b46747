"""What figures are measured on: four small clips as files (one of them broken), questions about them, and random models."""

import json
from pathlib import Path
from typing import Any

from clips import regular, write_clip
from made_examples import fill, fill_hypernetwork, write_examples
from made_questions import MAX_NEW_TOKENS, WORDINGS, question, write_hypernetwork, write_vlm

from infra.config import FramesSettings, HypernetworkSettings, Recipe, VLMSettings, Where
from infra.evaluation_config import AnswerSettings, EvaluationSettings, FigureSettings
from infra.storage import Table
from video2lora.adapter import Adapter
from video2lora.api import Decoding, Internalizer, ask_all, internalize_batch
from video2lora.checkpoint import load_hypernetwork
from video2lora.pretrained import load_vlm
from video2lora.video import Frames, Sampling, decode
from video2lora.vlm import FrozenVLM

R, EDGE_PX, N_POSITIONS = 5, 37, 190  # a frame takes about 10 positions
N_FRAMES = {"v0": 23, "v1": 7, "v2": 13}
SPANS = {"v2": (0.12, 0.36)}  # frames 3 to 8 of 40 ms each
N_SHOWN = {"v0": 23, "v1": 7, "v2": 6}


def make(folder: Path, **settings: Any) -> tuple[Recipe, Where]:
    """A recipe with these settings of figures, and the data that its training left.

    References are what the base says of 3 frames and ours of 3 or 2, so that no score is the same for all of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_vlm(folder / "vlm")
    config = json.loads((folder / "vlm" / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = N_POSITIONS
    (folder / "vlm" / "config.json").write_text(json.dumps(config))
    vlm = load_vlm(str(folder / "vlm"))
    recipe = Recipe(
        vlm=VLMSettings(model=str(folder / "vlm")),
        frames=FramesSettings(sampling=Sampling(policy="uniform", n_frames=3), longest_edge_px=EDGE_PX),
        hypernetwork=HypernetworkSettings(r=R),
        answer=AnswerSettings(max_new_tokens=MAX_NEW_TOKENS, questions_per_batch=2, sampled_frames=4),
        evaluation=EvaluationSettings(n_draws=200),
        figures=FigureSettings(**settings),
    )
    where = Where(data=str(folder / "data"))
    made = write_hypernetwork(vlm, folder / "hypernetwork", seed=5, r=R, opens_answer=True)
    using = Internalizer(vlm, load_hypernetwork(made).eval(), recipe.frames.sampling, EDGE_PX, "toy", "toy")
    videos, questions = [], []
    for number, (video_id, n_frames) in enumerate(N_FRAMES.items()):
        path = write_clip(folder / f"{video_id}.mp4", regular(n_frames), width_px=34 + 4 * number)
        start_s, end_s = SPANS.get(video_id, (None, None))
        videos.append({"video_id": video_id, "uri": str(path), "start_s": start_s, "end_s": end_s, "split": "test"})
        shown = [decode(path, Sampling(n_frames=n), longest_edge_px=EDGE_PX, start_s=start_s or 0.0, end_s=end_s) for n in (3, 2)]
        ours_3, ours_2 = (_said(vlm, adapter, None) for adapter in internalize_batch(shown, using=using, video_ids=["", ""]))
        base = _said(vlm, None, shown[0])
        references = [[ours_3[0]], [base[1]], [ours_2[2], base[2]]]
        questions += [question(3 * number + k, video_id, WORDINGS[k]) | {"references": references[k]} for k in range(3)]
    (folder / "broken.mp4").write_bytes(b"no video at all")
    videos.append({"video_id": "v3", "uri": str(folder / "broken.mp4"), "start_s": None, "end_s": None, "split": "test"})
    questions += [question(50, "v3", WORDINGS[0]), question(51, "v0", "Is <image> a token?"), question(52, "v0", "why " * 200)]
    fill(Table(where.data, "videos"), videos)
    fill(Table(where.data, "questions"), questions)
    fill_hypernetwork(recipe, write_examples(recipe, where.data, []), {path.name: path.read_bytes() for path in made.iterdir()})
    return recipe, where


def _said(vlm: FrozenVLM, adapter: Adapter | None, video: Frames | None) -> list[str]:
    answers = ask_all(adapter, WORDINGS, vlm=vlm, decoding=Decoding(max_new_tokens=MAX_NEW_TOKENS), video=video)
    return [answer.text for answer in answers]
