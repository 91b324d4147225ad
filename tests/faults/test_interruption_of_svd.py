"""A long SVD shows how far it is, stops when it is told to, and leaves nothing broken."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import scipy.sparse
from tests.children import HEED_INTERRUPTS, prepared

from eckart import svd

SECONDS = 10  # for a block step on a busy machine, which takes a tenth of one on a quiet one
CHILD = """
import sys
import numpy as np
import scipy.sparse
from eckart import svd

if sys.argv[1] == "sparse":
    A = scipy.sparse.random_array((60000, 40000), density=5e-4, rng=0, dtype=np.float32, format="csr")
else:
    A = np.random.default_rng(0).standard_normal((4000, 3000), dtype=np.float32)
before = svd(A, 2, tol=0.3).s
try:
    svd(A, 50, tol=0, method=sys.argv[2], progress=lambda stage, done, total: print("working", flush=True))
except KeyboardInterrupt:
    print("interrupted", flush=True)
print("same", np.array_equal(before, svd(A, 2, tol=0.3).s), flush=True)
"""


@pytest.mark.parametrize("method", ["lanczos", "golub-kahan"])
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_ctrl_c_ends_an_svd_within_a_step_and_the_next_one_works(kind, method):
    command = prepared([sys.executable, "-c", CHILD, kind, method], HEED_INTERRUPTS)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    guard = threading.Timer(120, child.kill)
    guard.start()
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "working\n"
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        lines = [line for line in child.stdout if line != "working\n"]
        assert lines == ["interrupted\n", "same True\n"]
        assert time.monotonic() - start < SECONDS
        assert child.wait() == 0
    finally:
        guard.cancel()
        child.kill()
        child.wait()
        child.stdout.close()


def matrix():
    return scipy.sparse.random_array((900, 700), density=0.02, rng=0, format="csr")


@pytest.mark.parametrize("method", ["lanczos", "golub-kahan"])
def test_progress_counts_the_values_that_have_converged(method):
    seen = []
    result = svd(matrix(), 12, method=method, progress=lambda *event: seen.append(event))
    assert result.converged
    assert {stage for stage, _, _ in seen} == {"singular values"}
    assert all(0 <= done <= total == 12 for _, done, total in seen)
    assert seen[0][1] < 12 == seen[-1][1]


def test_progress_true_is_shown_on_standard_error(capsys):
    svd(matrix(), 12, method="lanczos", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "singular values" in err


def test_a_callback_that_raises_is_heard_and_breaks_nothing():
    A, before = matrix(), svd(matrix(), 12).s

    def refuse(stage, done, total):
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        svd(A, 12, method="lanczos", progress=refuse)
    assert np.array_equal(svd(A, 12).s, before)
