"""Keras models on each of its backends, of which a process has one: its cases are run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "keras_cases"


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_the_cases_pass_on_each_backend(backend: str) -> None:
    files = sorted(map(str, CASES.glob("cases_*.py")))
    assert files
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    quiet["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # JAX compiles longer than it computes here
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files],
        env={**os.environ, **quiet, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert "skipped" not in done.stdout, done.stdout[-2_000:]
