"""One profile for Hypothesis, one thread for each worker of pytest-xdist, and the models that many tests use."""

import os

from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # before NumPy and torch are imported and start their threads
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25)
settings.register_profile("long", deadline=None, max_examples=500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

from tests.real_models import smollm2_gguf, texts, tiny  # noqa: E402

__all__ = ["smollm2_gguf", "texts", "tiny"]
