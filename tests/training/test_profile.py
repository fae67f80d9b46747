"""A profile that opens, of the steps that were asked for."""

import gzip
import json
from pathlib import Path

import torch
from torch import nn

from training.profile import WARM_STEPS, profiled


def test_a_profile_holds_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    layer, x = nn.Linear(11, 13), torch.randn(7, 11)
    with profiled(3, str(tmp_path)) as after_step:
        for _ in range(WARM_STEPS + 3 + 4):
            layer(x)
            after_step()
    (file,) = tmp_path.iterdir()
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "aten::addmm" for event in events) == 3


def test_no_profile_leaves_nothing(tmp_path: Path) -> None:
    with profiled(0, str(tmp_path)) as after_step:
        after_step()
    assert list(tmp_path.iterdir()) == []
