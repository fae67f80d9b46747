"""Shapes are checked at every call while tests run; nothing is fetched from the network."""

import os
import signal

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
os.environ.setdefault("MKL_CBWR", "AVX512,STRICT")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says on stdout, when it is imported, that it found no GPU
os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
from jaxtyping import install_import_hook

pytest_plugins = ["tests.servers.plugin"]

install_import_hook(["video2lora", "pipeline", "training"], "beartype.beartype")

# Whoever starts the tests in the background has SIGINT ignored, by them and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Slow tests run file by file in two processes: the longest first, or one of the two is left alone with it at the end.
LONGEST = (
    "tests/test_retraining.py",
    "training/test_exact_resume.py",
    "infra/test_ray_jobs.py",
    "training/test_node_loss.py",
    "infra/test_images.py",
    "tests/test_end_to_end.py",
    "tests/test_docs_run.py",
    "faults/test_targets.py",
    "faults/test_frames.py",
    "teacher/test_vllm_engine.py",
    "faults/test_stalls.py",
    "training/test_start_from.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((i for i, end in enumerate(LONGEST) if item.path.as_posix().endswith(end)), len(LONGEST)))
