"""A tiny world for a command to work on: real clips, a recipe, and a data root whose `videos` are those clips.

The clips lie beside the root, flat in one folder, so that each scenario gets a root of its own at the cost of copying a few files.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from infra.config import Recipe, Where, WorldSettings, load_recipe
from infra.sets import sets_of
from infra.storage import Table
from pipeline import manifest
from pipeline.made_world.clips import clips_of, encode

N_CLIPS = 48
N_DECODERS = 2
BLOCK = 3  # clips: N_CLIPS / (N_DECODERS * frames.BLOCKS_PER_DECODER)
DEADLINE_S = 20.0

RECIPE = """
frames: {{sampling: {{policy: uniform, n_frames: 4}}, longest_edge_px: 640, deadline_s: {deadline_s}}}
teacher: {{model: {model}, prompts: {prompts}, max_tokens: {max_tokens}, max_model_len: {max_model_len}, videos_per_block: {block}}}
"""
PROMPTS = """
id: faults
version: "1"
source: the tests'
groups:
  summary: {task: summary, wordings: [{id: summary, text: "Summarize the video."}]}
  caption: {task: caption, wordings: [{id: caption, text: "Caption the video."}]}
  about: {task: summary, wordings: [{id: about, text: "What is this video about?"}]}
  brief: {task: caption, wordings: [{id: brief, text: "Describe the video briefly."}]}
  colour: {task: question, wordings: [{id: colour, text: "What colour is the shape?"}]}
  shape: {task: question, wordings: [{id: shape, text: "What shape is shown?"}]}
"""
N_PROMPTS = 6


@dataclass(frozen=True)
class World:
    """`folder` holds clips/, recipe.yaml, prompts.yaml and root/, which nobody but `fresh_root` touches."""

    folder: Path

    @property
    def clips(self) -> Path:
        return self.folder / "clips"

    def recipe_file(self, name: str = "recipe", **changed: object) -> Path:
        """The recipe with some of its settings changed."""
        settings: dict[str, object] = {"deadline_s": DEADLINE_S, "prompts": self.folder / "prompts.yaml", "max_tokens": 24, "block": BLOCK}
        settings |= {"model": "tiny", "max_model_len": 256} | changed
        file = self.folder / f"{name}.yaml"
        text = RECIPE.format(**settings)
        if not file.exists() or file.read_text() != text:  # another command may be reading it
            file.write_text(text)
        return file

    @property
    def recipe(self) -> Recipe:
        return load_recipe(str(self.recipe_file()))

    def fresh_root(self, folder: Path) -> Path:
        """A copy of the root."""
        return Path(shutil.copytree(self.folder / "root", folder))


def make_world(folder: Path) -> World:
    """Clips of 1 to 4 s, about 40 ms of decoding and encoding each."""
    world = World(folder)
    world.clips.mkdir(parents=True)
    settings = WorldSettings(level=1, seed=4, n_train=N_CLIPS, n_validation=1, n_test=2)
    for clip in clips_of(settings)[:N_CLIPS]:
        (world.clips / f"{clip.index:03d}.mp4").write_bytes(encode(clip))
    (folder / "prompts.yaml").write_text(PROMPTS)
    manifest.run(str(world.clips), world.recipe, Where(data=str(folder / "root")))
    return world


def table_of(root: Path | str, name: str) -> Table:
    """The only set of a table. Raises StopIteration while no run has registered one."""
    return next(table for table, _ in sets_of(str(root), name))


def n_commits(root: Path | str, name: str) -> int:
    """How many commits the table's log has; 0 while there is no table."""
    return sum(entry["kind"] == "commit" for table, _ in sets_of(str(root), name) for entry in table.log.read())
