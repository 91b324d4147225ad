"""svd inside of JAX's transformations: grad, jit and vmap, in any order. The SVD runs in NumPy, by a callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eckart._arguments import checked_rank
from eckart._arrays import floating
from eckart._decomposed import BOUNDS, SVD, Certificate
from eckart._gradients._result import Call, Differentiable, differentiable, unrounded
from eckart._gradients._rules import pull_factors, pull_low_rank
from eckart.errors import UsageError

__all__ = ["asks", "differentiated"]


def asks(A: jax.Array) -> bool:
    """Say whether a gradient may be asked for: any array that is being transformed."""
    return True


def differentiated(A: jax.Array, call: Call) -> Differentiable:
    """Return the SVD of an array inside of a transformation.

    Its certificate, passes and converged are arrays, since they are known when the compiled function runs; method is
    "callback". UsageError: the number of values would depend on the entries, or a type other than a float's.
    """
    if call.error is not None:
        raise UsageError("inside of jax.jit the rank may not depend on the entries, as error= makes it", fix="pass k=")
    if not jnp.issubdtype(A.dtype, jnp.floating):
        raise UsageError(f"inside of a JAX transformation svd takes floats, not {A.dtype}", fix="pass A.astype(float)")
    if A.ndim < 2:
        call.run(np.zeros(A.shape))  # says what to do
    m, n = A.shape[-2:]
    k = checked_rank(min(m, n) if call.k is None else call.k, min(m, n), f"a {m} x {n} matrix")

    @jax.custom_vjp
    def factors(A: jax.Array) -> Any:
        return _computed(A, call, k)

    def forward(A: jax.Array) -> Any:
        values = _computed(A, call, k)
        return values, (A, *values[:3])

    def backward(kept: Any, gradients: Any) -> Any:
        return (_pulled(pull_factors, call, *kept, *gradients[:3]),)

    factors.defvjp(forward, backward)
    U, s, Vt, residuals, passes, converged, *bounds = factors(A)
    error = Certificate(**dict(zip(BOUNDS, bounds, strict=True)))
    result = SVD(U, s, Vt, residuals, error, "callback", passes, converged)

    @jax.custom_vjp
    def product(A: jax.Array, U: jax.Array, s: jax.Array, Vt: jax.Array) -> jax.Array:
        wide = floating(np, U.dtype)[0]
        return ((U.astype(wide) * s.astype(wide)[..., None, :]) @ Vt.astype(wide)).astype(U.dtype)

    def product_forward(*inputs: jax.Array) -> Any:
        return product(*inputs), inputs

    def product_backward(kept: Any, G: jax.Array) -> Any:
        return _pulled(pull_low_rank, call, *kept, G), *(jnp.zeros_like(x) for x in kept[1:])

    product.defvjp(product_forward, product_backward)
    return differentiable(result, lambda U, s, Vt: product(A, U, s, Vt))


def _computed(A: jax.Array, call: Call, k: int) -> Any:
    """Return U, s, Vt, residuals, passes, converged and the bounds of the certificate as arrays."""
    *outer, m, n = A.shape
    wide = floating(np, A.dtype)[0]
    bound = jax.dtypes.canonicalize_dtype(np.float64)
    shapes = [((m, k), A.dtype), ((k,), A.dtype), ((k, n), A.dtype), ((k,), wide), ((), np.int32), ((), np.bool_)]
    shapes += [((), bound)] * len(BOUNDS)

    def compute(array: Any) -> Any:
        result = call.run(np.asarray(array))
        values = [*result, result.residuals, result.passes, result.converged]
        values += [_upward(getattr(result.error, name), bound) for name in BOUNDS]
        stack = array.shape[:-2]
        return tuple(
            np.broadcast_to(value, (*stack, *shape)).astype(dtype)
            for value, (shape, dtype) in zip(values, shapes, strict=True)
        )

    if not isinstance(A, jax.core.Tracer):
        return tuple(jnp.asarray(value) for value in compute(np.asarray(A)))
    given_back = tuple(_like((*outer, *shape), dtype) for shape, dtype in shapes)
    return jax.pure_callback(compute, given_back, A, vmap_method="broadcast_all")


def _pulled(rule: Callable[..., Any], call: Call, A: jax.Array, *arrays: jax.Array) -> jax.Array:
    """Return the gradient with respect to A by one of the rules. arrays: U, s, Vt and the gradients that come in."""

    def pull(*given: Any) -> Any:
        matrix, U, s, Vt, *gradients = (np.asarray(x) for x in given)
        return rule(matrix, *unrounded(matrix, call, U, s, Vt), *gradients, call.center).astype(matrix.dtype)

    if not any(isinstance(x, jax.core.Tracer) for x in (A, *arrays)):
        return jnp.asarray(pull(A, *arrays))
    gradient: jax.Array = jax.pure_callback(pull, _like(A.shape, A.dtype), A, *arrays, vmap_method="broadcast_all")
    return gradient


def _like(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _upward(bound: Any, dtype: Any) -> Any:
    """Return an upper bound in a type that may be narrower, rounded up."""
    bound = np.asarray(bound, np.float64)  # or NumPy would compare in the narrower type
    with np.errstate(over="ignore"):
        rounded = bound.astype(dtype)
    return np.where(rounded < bound, np.nextafter(rounded, np.asarray(np.inf, dtype)), rounded)
