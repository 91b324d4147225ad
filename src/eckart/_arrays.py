"""Array frameworks: where an array lives, in which precision to compute with it, and how results return to its type.

Engine code asks the namespace `xp` of array-api-compat and never which framework it is. Dtypes are known by name,
since that is all that the frameworks agree on. NumPy arrays and torch tensors are computed with as they are; JAX and
TensorFlow arrays are seen as NumPy arrays, without a copy where they are on the CPU, and results go back to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeAlias

import array_api_compat
import numpy as np

from eckart._registry import Registry
from eckart.errors import UsageError

__all__ = [
    "Array",
    "Space",
    "enter",
    "floating",
    "frameworks",
    "inside",
    "numpy_space",
    "own",
    "power_of_two",
    "space_of",
    "stay",
    "to_numpy",
]

Array: TypeAlias = Any

# input dtype -> dtype of the computation. Half floats have no LAPACK; integers have no singular vectors of their own.
COMPUTED_IN = {
    "float64": "float64",
    "float32": "float32",
    "float16": "float32",
    "bfloat16": "float32",
    "bool": "float64",
}
COMPUTED_IN |= {f"{sign}int{bits}": "float64" for sign in ("", "u") for bits in (8, 16, 32, 64)}

# type name -> adapter, which gives the array to compute with, and what takes results back to the framework
frameworks: Registry[Callable[[Any], tuple[Array, Callable[[Array], Any]]]] = Registry()


def stay(x: Array) -> Array:
    """Return x: results of NumPy and torch are where they belong."""
    return x


@dataclass(frozen=True)
class Space:
    """Where a computation happens: namespace, device, floating type; and the type in which its results are returned.

    export: makes a result an array of the framework from which the matrix came, on its device.
    """

    xp: Any
    device: Any
    dtype: Any
    returned: Any
    export: Callable[[Array], Any] = stay

    @property
    def name(self) -> str:
        """Return the type of the computation by its name in NumPy."""
        return _name(self.dtype)

    @property
    def eps(self) -> float:
        """Return the rounding unit of the computation, twice the largest relative error of one rounding."""
        return float(self.xp.finfo(self.dtype).eps)

    @property
    def returned_eps(self) -> float:
        """Return the rounding unit of the results: larger than eps where half floats are returned."""
        return {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(_name(self.returned), self.eps)

    def asarray(self, x: Any) -> Array:
        """Return a NumPy array as an array of this space."""
        return self.xp.asarray(np.ascontiguousarray(x), dtype=self.dtype, device=self.device)

    def double(self, x: Array) -> Array:
        """Return x in float64 on its device."""
        return self.xp.astype(x, self.xp.float64, copy=False)

    def single(self, x: Array) -> Array:
        """Return x in the type of the computation."""
        return self.xp.astype(x, self.dtype, copy=False)

    def leave(self, x: Array) -> Array:
        """Return x in the type of the results."""
        return self.xp.astype(x, self.returned, copy=False)

    def unit(self, n: int, start: int, stop: int) -> Array:
        """Return columns start to stop of the identity of size n."""
        return self.xp.eye(n, stop - start, k=-start, dtype=self.dtype, device=self.device)

    def normal(self, shape: tuple[int, ...], seed: int) -> Array:
        """Return standard normal numbers drawn by NumPy, hence the same on every framework and device."""
        return self.asarray(np.random.default_rng(seed).standard_normal(shape))


def numpy_space(dtype: Any) -> Space:
    """Return the NumPy space in which data of this dtype is computed."""
    computed, returned = floating(np, dtype)
    return Space(array_api_compat.array_namespace(np.empty(0)), "cpu", computed, returned)


def enter(x: Any) -> tuple[Array, Space]:
    """Return x as an array to compute with, NumPy's or torch's, and its space. x is neither changed nor, where its type
    already serves, copied.

    UsageError: a type of no known framework, numbers that are not real, or numbers that are not known yet.
    """
    array, space = _entered(x)
    return space.single(array), space


def space_of(x: Any) -> Space:
    """Return the space in which an array of a framework is computed."""
    return _entered(x)[1]


def inside(x: Any) -> Array:
    """Return an array of any framework as one to compute with, in its own type; what can be is returned as it is."""
    array, space = _entered(x)
    return x if space.export is stay else array


def _entered(x: Any) -> tuple[Array, Space]:
    adapter = frameworks.find(x)
    if adapter is None:
        raise UsageError(
            f"{type(x).__module__}.{type(x).__qualname__} is not an array of a known framework",
            fix="pass an array of NumPy, torch, JAX or TensorFlow, or nested lists",
        )
    array, export = adapter(x)
    xp = array_api_compat.array_namespace(array)
    computed, returned = floating(xp, array.dtype)
    return array, Space(xp, array_api_compat.device(array), computed, returned, export)


def floating(xp: Any, dtype: Any) -> tuple[Any, Any]:
    """Return the floating types of the namespace in which data of this dtype is computed and in which it is returned.

    UsageError: complex numbers, and types outside COMPUTED_IN.
    """
    name = _name(dtype)
    if name.startswith("complex"):
        raise UsageError(f"the matrix is {name}; only real matrices are decomposed", fix="pass A.real, or A.imag")
    if name not in COMPUTED_IN:
        raise UsageError(
            f"the matrix has dtype {name}, which is not supported",
            fix="convert it to float64, float32, float16 or bfloat16",
        )
    computed = getattr(xp, COMPUTED_IN[name])
    return computed, dtype if name.endswith("float16") else computed


def power_of_two(array: Array, exponent: int) -> Array:
    """Return array * 2**exponent, exact unless an entry leaves its type's range; 2**exponent itself may lie outside."""
    half = exponent // 2
    return array * 2.0**half * 2.0 ** (exponent - half)


def own(array: Array) -> Array:
    """Return a copy in one piece of memory, row by row, that keeps nothing larger alive."""
    xp = array_api_compat.array_namespace(array)
    return xp.reshape(xp.reshape(array, (-1,), copy=True), tuple(array.shape))


def to_numpy(array: Array) -> Any:
    """Return an array of any framework in NumPy; bfloat16, which NumPy lacks, becomes float32 with the same values."""
    widened = enter(array)[0] if _name(array.dtype) == "bfloat16" else _entered(array)[0]
    return np.asarray(array_api_compat.to_device(widened, "cpu"))


def _name(dtype: Any) -> str:
    """Return "float32" of np.dtype("float32"), np.dtype(">f4"), np.float32 and torch.float32 alike."""
    return str(getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or dtype).rpartition(".")[2]


@frameworks.claim("numpy.ndarray", "builtins.list", "builtins.tuple")
def _numpy(x: Any) -> tuple[Array, Callable[[Array], Any]]:
    try:
        return np.asarray(x), stay
    except ValueError as error:
        raise UsageError(
            f"the nested {type(x).__name__} is not a matrix: {error}", fix="give rows of one length"
        ) from error


@frameworks.claim("numpy.ma.MaskedArray", "numpy.ma.core.MaskedArray")
def _masked(x: Any) -> NoReturn:
    raise UsageError(
        "a masked array has entries that are not known, and the SVD has no rule for them",
        fix="fill them first, e.g. A.filled(0)",
    )


@frameworks.claim("torch.Tensor")
def _torch(x: Any) -> tuple[Array, Callable[[Array], Any]]:
    if str(x.layout) != "torch.strided":
        raise UsageError(
            f"a torch tensor of layout {x.layout} is not supported",
            fix="pass it as a scipy.sparse matrix, or as x.to_dense()",
        )
    return x.detach(), stay


@frameworks.claim("jaxlib._jax.ArrayImpl")
def _jax(x: Any) -> tuple[Array, Callable[[Array], Any]]:
    from jax.dtypes import canonicalize_dtype
    from jax.numpy import asarray

    if COMPUTED_IN.get(str(x.dtype)) == "float64" and canonicalize_dtype("float64") != "float64":
        raise UsageError(
            f"a JAX array of {x.dtype} is decomposed in float64, which JAX would return as float32",
            fix='pass A.astype("float32"), or call jax.config.update("jax_enable_x64", True) first',
        )
    return np.asarray(x), partial(asarray, device=x.sharding if len(x.devices()) == 1 else None)


@frameworks.claim("jax._src.core.Tracer")
def _traced(x: Any) -> NoReturn:
    raise UsageError(
        "an array inside jax.jit, jax.vmap or jax.grad has no numbers yet",
        fix="of what Eckart does only eckart.svd(A, k) and its arrays go there; do the rest outside",
    )


@frameworks.claim("tensorflow.python.framework.ops.EagerTensor")
def _tensorflow(x: Any) -> tuple[Array, Callable[[Array], Any]]:
    return np.asarray(x), partial(_to_tensorflow, x.device)


@frameworks.claim("tensorflow.python.ops.resource_variable_ops.BaseResourceVariable")
def _variable(x: Any) -> tuple[Array, Callable[[Array], Any]]:
    value = x.value()
    return frameworks.find(value)(value)  # type: ignore[misc]


@frameworks.claim("tensorflow.python.framework.ops.SymbolicTensor")
def _symbolic(x: Any) -> NoReturn:
    raise UsageError(
        "a tensor inside tf.function has no numbers yet",
        fix="of what Eckart does only eckart.svd(A, k) and its tensors go there; do the rest outside",
    )


def _to_tensorflow(device: str, array: Array) -> Any:
    import tensorflow as tf

    with tf.device(device):
        return tf.convert_to_tensor(array)
