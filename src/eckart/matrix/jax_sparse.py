"""JAX's sparse arrays BCOO and BCSR, never made dense. Results are dense JAX arrays."""

from __future__ import annotations

from typing import Any

from eckart._arrays import enter, inside
from eckart.errors import UsageError
from eckart.matrix._borrowed import borrowed
from eckart.matrix._contract import Operand, kinds

__all__: list[str] = []


@kinds.claim("jax.experimental.sparse.bcoo.BCOO")
def bcoo(x: Any) -> Operand:
    """Return a BCOO array of two sparse dimensions as a matrix. Gradients do not reach its entries."""
    _require_no_dense_dimensions(x)
    values, space = enter(x.data)
    places = inside(x.indices)
    if len(x.shape) == 2 and not (held := (places < x.shape).all(axis=1)).all():
        values, places = values[held], places[held]  # JAX fills arrays up with places outside the shape
    return borrowed("coo", values, tuple(places.T), x.shape, space)


@kinds.claim("jax.experimental.sparse.bcsr.BCSR")
def bcsr(x: Any) -> Operand:
    """Return a BCSR array of two sparse dimensions as a matrix. Gradients do not reach its entries."""
    _require_no_dense_dimensions(x)
    values, space = enter(x.data)
    ends = inside(x.indptr)
    held = slice(0, int(ends[-1]))  # the rest fills the arrays up
    return borrowed("csr", values[held], (inside(x.indices)[held], ends), x.shape, space)


def _require_no_dense_dimensions(x: Any) -> None:
    if x.n_batch or x.n_dense:
        raise UsageError(
            f"a {type(x).__name__} with {x.n_batch} batch and {x.n_dense} dense dimensions is not supported",
            fix="make it with n_batch=0, n_dense=0",
        )
