"""`video2lora`: starts stages by name and turns what a user can cause into one line and an exit code (HELP)."""

import importlib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from infra import adapter_commands, evaluation_commands, jobs, promotion_commands, run_commands, steps, submit_commands, table_commands
from infra.config import load_recipe, load_where
from infra.errors import command_error

HELP = """A hypernetwork turns a video into LoRA weights of a frozen vision-language model, which then answers questions about that video
with no visual token in its context. To begin: `video2lora demo`.

What is made is said by `--recipe`, where by the environment (VIDEO2LORA_DATA, RAY_ADDRESS, MLFLOW_TRACKING_URI, ...). The same command
again goes on where it was ended.

Exit codes: 0 done; 2 wrong usage; 3 bad input; 4 made from something else; 5 storage; 6 rows lost; 7 a stage failed; 8 superseded by
another run; 130 interrupted; 143 terminated, and what was done is saved; 1 a fault of ours, with its traceback.
"""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)
tiny_app = typer.Typer(no_args_is_help=True, help="The small VLM that ships: how it is made and measured.")
app.add_typer(tiny_app, name="tiny")

RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="A shipped recipe's name or a YAML file.")]


def _run_stage(name: str, recipe: str) -> None:
    print(jobs.stage(name).run(load_recipe(recipe), load_where()))


@app.command()
def clips(recipe: RecipeOption = "demo") -> None:
    """Render the recipe's made world into `clips` of the data folder."""
    _run_stage("clips", recipe)


@app.command()
def manifest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, JSONL or Parquet; docs/data.md has its columns.")],
    questions: Annotated[str | None, typer.Option(help="JSONL of questions; by default questions.jsonl beside a JSONL SOURCE.")] = None,
    recipe: RecipeOption = "demo",
) -> None:
    """SOURCE (a folder, JSONL or Parquet of video paths; local or s3://) -> tables `videos` and `questions`."""
    module = importlib.import_module("pipeline.manifest")
    print(module.run(source, load_recipe(recipe), load_where(), questions=questions))


@app.command()
def frames(recipe: RecipeOption = "demo") -> None:
    """Decode and sample `videos` -> `frames` (Ray Data)."""
    _run_stage("frames", recipe)


@app.command()
def examples(recipe: RecipeOption = "demo") -> None:
    """`frames` x `targets` -> shuffled training shards `examples` (Ray Data)."""
    _run_stage("examples", recipe)


@app.command()
def encode(recipe: RecipeOption = "demo") -> None:
    """`examples` -> `visual_tokens`, what the VLM's vision tower makes of them (Ray Data); `train` runs it where it needs them."""
    _run_stage("encode", recipe)


@app.command()
def train(
    recipe: RecipeOption = "demo",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Two steps on made videos: memory, operations, speed; nothing is written.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What --dry-run found, as JSON.")] = False,
    profile: Annotated[int, typer.Option(metavar="N", min=0, help="Write a torch profile of N steps beside the hypernetwork.")] = 0,
) -> None:
    """`examples` -> the hypernetwork (Ray Train, DeepSpeed ZeRO)."""
    if as_json and not dry_run:
        raise typer.BadParameter("--json goes with --dry-run")
    if dry_run:
        trial = importlib.import_module("training.dry_run")
        found = trial.run(load_recipe(recipe), load_where())
        trial.print_json(found) if as_json else trial.print_tables(found)
    else:
        print(importlib.import_module("training.train").run(load_recipe(recipe), load_where(), profile=profile))


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="A shipped sweep's name or a YAML file.")],
    as_json: table_commands.JsonOption = False,
) -> None:
    """Recipes that differ in a few settings, each trained with several seeds -> one table with confidence intervals."""
    importlib.import_module("training.sweep").run(name, load_where(), as_json=as_json)


@app.command(name="demo")
def run_demo(recipe: RecipeOption = "demo") -> None:
    """Made clips, and every stage in order; run again, it continues."""
    steps.demo(load_recipe(recipe), load_where())


evaluation_commands.mount(app)
table_commands.mount(app)
adapter_commands.mount(app)
run_commands.mount(app)
promotion_commands.mount(app)
submit_commands.mount(app)


@tiny_app.command(name="train")
def tiny_train(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder for the weights.")],
    level: Annotated[int, typer.Option(help="Level of the made world's clips.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the weights, the clips and their order.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the second part; for trying things out.")] = None,
) -> None:
    """Train the small VLM on the made world (at most 90 minutes on 2 cores)."""
    importlib.import_module("pipeline.tiny_vlm").run_train(output, level=level, seed=seed, answer_steps=steps)


@tiny_app.command(name="verify")
def tiny_verify(
    model: Annotated[str, typer.Option(help="The model that ships, or a folder.")] = "tiny",
    clips_: Annotated[int, typer.Option("--clips", min=1, help="Test clips to measure on.")] = 200,
) -> None:
    """Measure the small VLM on real test clips, with the video in context and blind."""
    importlib.import_module("pipeline.tiny_vlm").run_verify(model, n_clips=clips_)


def main() -> None:
    """Entry point: errors a user can cause end here as one line."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    os.environ.setdefault("MKL_CBWR", "AVX512,STRICT")  # infra.cluster says why; read at the first product
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # read when Ray is imported: a thread that outlives a stall would join it again
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except SystemExit as ended:  # which typer makes of Ctrl-C
        if ended.code == 130:
            print("interrupted; the same command continues", file=sys.stderr)
        raise
    except Exception as error:
        known = command_error(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        sys.exit(known.exit_code)


if __name__ == "__main__":
    main()
