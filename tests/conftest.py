"""Shapes are checked at every call while tests run; nothing is fetched from the network."""

import os

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
os.environ.setdefault("MKL_CBWR", "AVX512,STRICT")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

from jaxtyping import install_import_hook

pytest_plugins = ["tests.servers.plugin"]

install_import_hook(["video2lora", "pipeline", "training"], "beartype.beartype")
