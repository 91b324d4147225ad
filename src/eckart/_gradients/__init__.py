"""Derivatives of svd with respect to A, in torch, JAX and TensorFlow: the only place where autograd is spoken of.

First derivatives, in reverse mode. `route` recognises an input that may ask for them, without importing a framework.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from eckart._decomposed import SVD
from eckart._gradients._result import Call, Differentiable
from eckart._registry import Registry

__all__ = ["Call", "Differentiable", "opaque", "route"]

Function = TypeVar("Function", bound=Callable[..., Any])
Route = Callable[[Any, Call], SVD]

_modules: Registry[str] = Registry()
_modules.claim("torch.Tensor")("torch")
_modules.claim("jax._src.core.Tracer")("jax")
_modules.claim(
    "tensorflow.python.framework.tensor.Tensor",
    "tensorflow.python.ops.resource_variable_ops.BaseResourceVariable",
)("tensorflow")


def opaque(function: Function) -> Function:
    """Return the function, so marked that tf.function calls it as it is instead of rewriting its source."""
    setattr(function, "autograph_info__", {})  # noqa: B010  which is how TensorFlow marks functions of its own
    return function


def route(A: object) -> Route | None:
    """Return how svd is to be called so that gradients reach A, or None where A asks for none."""
    name = _modules.find(A)
    if name is None:
        return None
    module = import_module(f"eckart._gradients.{name}")
    found: Route | None = module.differentiated if module.asks(A) else None
    return found
