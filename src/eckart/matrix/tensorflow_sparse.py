"""TensorFlow's SparseTensor, never made dense. Results are dense TensorFlow tensors."""

from __future__ import annotations

from typing import Any

from eckart._arrays import enter, inside
from eckart.matrix._borrowed import borrowed
from eckart.matrix._contract import Operand, kinds

__all__: list[str] = []


@kinds.claim("tensorflow.python.framework.sparse_tensor.SparseTensor")
def sparse_tensor(x: Any) -> Operand:
    """Return a SparseTensor of two dimensions as a matrix. Gradients do not reach its entries."""
    values, space = enter(x.values)
    shape = tuple(int(size) for size in inside(x.dense_shape))
    return borrowed("coo", values, tuple(inside(x.indices).T), shape, space)
