"""svd under TensorFlow's GradientTape and inside of tf.function. The SVD itself runs in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from eckart._arguments import checked_rank
from eckart._arrays import floating, inside
from eckart._decomposed import BOUNDS, SVD, Certificate
from eckart._gradients._result import Call, Differentiable, differentiable, unrounded
from eckart._gradients._rules import pull_factors, pull_low_rank
from eckart.errors import UsageError

__all__ = ["asks", "differentiated"]


def asks(A: Any) -> bool:
    """Say whether a gradient may be asked for: of any float tensor, since a tape tells nobody what it watches."""
    return bool(A.dtype.is_floating) or not tf.executing_eagerly()


def differentiated(A: Any, call: Call) -> Differentiable:
    """Return the SVD of a tensor or variable with gradients.

    Inside of tf.function the certificate, passes and converged are tensors, since they are known when the function
    runs, and method is "callback". UsageError: the number of values would depend on entries or on an unknown shape.
    """
    x = tf.convert_to_tensor(A)
    compute = _eagerly if tf.executing_eagerly() else _in_graph
    found: list[SVD] = []

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def factors(x: Any) -> Any:
        found.append(compute(x, call))
        kept = tuple(found[-1])

        def pull(*gradients: Any) -> Any:
            return _pulled(pull_factors, call, x, *kept, *gradients)

        return kept, pull

    U, s, Vt = factors(x)
    result = found[-1]

    def low_rank(U: Any, s: Any, Vt: Any) -> Any:
        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def product(x: Any) -> Any:
            kept = tuple(tf.stop_gradient(y) for y in (U, s, Vt))
            wide = tf.as_dtype(floating(np, x.dtype.as_numpy_dtype)[0])
            left, values, right = (tf.cast(y, wide) for y in kept)
            value = tf.cast((left * values[..., None, :]) @ right, x.dtype)
            return value, lambda G: _pulled(pull_low_rank, call, x, *kept, G)

        return product(x)

    return differentiable(result, low_rank, U=U, s=s, Vt=Vt)


def _eagerly(x: Any, call: Call) -> SVD:
    return call.run(x)


def _in_graph(x: Any, call: Call) -> SVD:
    if call.error is not None or x.shape.rank is None or None in x.shape[-2:]:
        raise UsageError(
            f"inside of tf.function svd must know how many values there are, and it has error = {call.error} and a "
            f"matrix of shape {x.shape}",
            fix="pass k= instead of error=, and input_signature= with the last two dimensions",
        )
    if x.shape.rank < 2:
        call.run(np.zeros(x.shape))  # says what to do
    *outer, m, n = x.shape
    k = checked_rank(min(m, n) if call.k is None else call.k, min(m, n), f"a {m} x {n} matrix")
    computed, returned = (tf.as_dtype(dtype) for dtype in floating(np, x.dtype.as_numpy_dtype))
    shapes = [((m, k), returned), ((k,), returned), ((k, n), returned), ((k,), computed), ((), tf.int32), ((), tf.bool)]
    shapes += [((), tf.float64)] * len(BOUNDS)

    def compute(array: Any) -> Any:
        result = call.run(array)
        values = [*result, result.residuals, result.passes, result.converged]
        values += [getattr(result.error, name) for name in BOUNDS]
        return [
            np.broadcast_to(value, (*array.shape[:-2], *shape)).astype(dtype.as_numpy_dtype)
            for value, (shape, dtype) in zip(values, shapes, strict=True)
        ]

    arrays = tf.numpy_function(compute, [x], [dtype for _, dtype in shapes], stateful=False)
    for array, (shape, _) in zip(arrays, shapes, strict=True):
        array.set_shape((*outer, *shape))
    U, s, Vt, residuals, passes, converged, *bounds = arrays
    return SVD(
        U, s, Vt, residuals, Certificate(**dict(zip(BOUNDS, bounds, strict=True))), "callback", passes, converged
    )


def _pulled(rule: Callable[..., Any], call: Call, x: Any, *tensors: Any) -> Any:
    """Return the gradient with respect to x by one of the rules. tensors: U, s, Vt and the gradients that come in.

    It has no derivative, and says so rather than be taken for a constant.
    """

    def pull(*given: Any) -> Any:
        matrix, U, s, Vt, *gradients = given
        return rule(matrix, *unrounded(matrix, call, U, s, Vt), *gradients, call.center).astype(matrix.dtype)

    def refuse(*gradients: Any) -> Any:
        raise UsageError("svd has first derivatives only", fix="let no outer GradientTape watch A")

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def gradient(*given: Any) -> Any:
        if tf.executing_eagerly():
            return tf.convert_to_tensor(pull(*(inside(y) for y in given))), refuse
        found = tf.numpy_function(pull, given, x.dtype, stateful=False)
        found.set_shape(x.shape)
        return found, refuse

    return gradient(x, *tensors)
