"""Which code and which tables: told by git and by what the tables themselves say."""

import subprocess
from pathlib import Path

from infra.lineage import code_tags, table_tags


def test_the_commit_is_git_s_own() -> None:
    root = Path(__file__).parents[2]
    asked = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    if asked.returncode == 0:
        assert code_tags()["mlflow.source.git.commit"] == asked.stdout.strip()
    else:
        assert set(code_tags()) <= {"version"}


def test_tables_are_found_all_the_way_down() -> None:
    videos = {"asked": {"stage": "manifest"}, "rows": "v1"}
    targets = {"set": "tiny-2", "rows": "t1", "asked": {"inputs": {"videos": {**videos, "rows": "v2"}}}}
    examples = {"set": "tiny-3", "rows": "e1", "asked": {"inputs": {"videos": videos, "targets": targets}}}
    made_from = {"stage": "answer", "inputs": {"hypernetwork": {"stage": "train", "inputs": {"examples": examples}}}}
    assert table_tags(made_from) == {"table.examples": "tiny-3@e1", "table.targets": "tiny-2@t1", "table.videos": "videos@v1, videos@v2"}
    assert table_tags({}) == {}
