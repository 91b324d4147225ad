"""What a matrix costs: no copy of it is made, whole or in a wider type, and how often it is read."""

import tracemalloc

import numpy as np
import pytest

from eckart import as_matrix
from eckart.matrix import centred, transposed

BLOCK = 8


def peak(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("view", [lambda A: A, transposed, centred, lambda A: transposed(centred(A))])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_an_array_in_memory_is_never_copied_whole(view, dtype):
    entries = np.random.default_rng(0).standard_normal((20000, 400)).astype(dtype)
    A = as_matrix(entries)
    X, Y = np.ones((400, BLOCK)), np.ones((20000, BLOCK))

    def work():
        matrix = view(A)
        wide, tall = (X, Y) if matrix.shape == entries.shape else (Y, X)
        for block_type in (np.float64, np.float32):
            matrix.matmat(wide.astype(block_type))
            matrix.rmatmat(tall.astype(block_type))
        matrix.largest()
        matrix.squared_norm()

    assert peak(lambda: as_matrix(entries)) < entries.nbytes / 10
    assert peak(work) < entries.nbytes / 2
    as_matrix(entries)
    assert np.shares_memory(as_matrix(entries.T).entries, entries)
