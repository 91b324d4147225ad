"""An ONNX file as a network of kernels: no other framework is needed to compress it."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto

from eckart._arrays import Array
from eckart._files import dump_json
from eckart.errors import InputError, NumericalError, UsageError
from eckart.models._kernel import Kernel, stages
from eckart.models._model import Layer
from eckart.models._network import Batch, Network, Visit
from eckart.models._onnx_file import add_, numbers_of, read_model, remove_, write_model
from eckart.models._onnx_kernels import products
from eckart.models._onnx_nodes import Product, alone, lowered, read_by
from eckart.models._onnx_session import Session
from eckart.models._processor import processor

__all__ = ["OnnxNetwork"]

PLAN_KEY = "eckart_plan"  # of the file's metadata


class OnnxNetwork(Network):
    """The model in an ONNX file, which is run by onnxruntime on the CPU.

    example: what it can be called with. InputError, UnsafeInputError: see `read_model`; NumericalError: NaN or infinity
    in the weights of a layer. Layers in branches, loops and functions are not looked at.
    """

    gradients = False

    def __init__(self, source: str | os.PathLike[str], example: Batch) -> None:
        path = Path(source)
        self.name, self.path, self._example = path.name, str(path), example
        self._proto, self._arrays = read_model(path)
        self._given = numbers_of(self._proto)
        self._products = products(self._proto, self._arrays)
        if not self._products:
            raise InputError(f"{path} has no convolution and no matrix product with stored weights", file=str(path))
        for product in self._products.values():
            for name in filter(None, (product.weight, product.own_bias)):
                if name in self._arrays and not np.isfinite(self._arrays[name].astype(np.float32, copy=False)).all():
                    raise NumericalError(
                        f"{name}, of the layer {product.layer.name}, holds NaN or infinity", file=str(path), tensor=name
                    )
        kinds = Counter[str]()
        for array in self._arrays.values():
            kinds[array.dtype.name] += array.size
        self.dtype = kinds.most_common(1)[0][0] if kinds else "float32"
        self.replaced: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._last_read: list[dict[str, Any]] | None = None  # of one layer: it is timed in many forms
        self._sessions: dict[tuple[str, ...] | None, Session] = {}

    def given(self, dtype: str) -> tuple[int, int]:
        self._check_type(dtype)
        return self._given

    def size(self, dtype: str) -> tuple[int, int]:
        self._check_type(dtype)
        return numbers_of(self._proto)

    def _check_type(self, dtype: str) -> None:
        if dtype != self.dtype:
            raise UsageError(
                f"{self.name} is in {self.dtype}, and a compressed ONNX file keeps its types: {dtype} was asked for",
                fix="drop dtype=",
            )

    @contextlib.contextmanager
    def saved(self, path: Path, *, max_shard_bytes: int) -> Iterator[OnnxNetwork]:
        """One file, or two: see `write_model`. UsageError: the plan's type is another than the model's."""
        self._check_type(self.plan.dtype)
        proto = ModelProto()
        proto.CopyFrom(self._proto)
        for old in [one for one in proto.metadata_props if one.key == PLAN_KEY]:
            proto.metadata_props.remove(old)
        proto.metadata_props.add(key=PLAN_KEY, value=dump_json(self.plan.to_json()))
        with write_model(proto, self._arrays, path) as written:
            yield OnnxNetwork(written, self._example)

    def layers(self) -> Mapping[str, Layer]:
        return {name: product.layer for name, product in self._products.items()}

    def weight(self, name: str) -> tuple[Array, Array | None]:
        return self._products[name].weights(self._arrays)

    # Running it

    def outputs(self, batch: Batch) -> Array:
        found = [_joined(calls) for calls in self._session(None).run(batch).values()]
        found = [one for one in found if np.issubdtype(one.dtype, np.floating)]
        if not found:
            raise InputError(f"{self.name} has no floating-point output", file=self.path)
        examples = {len(one) for one in found}
        count = max(examples) if len(examples) == 1 else 1  # what has no axis in common is of one example
        made = np.concatenate([one.reshape(count, -1) for one in found], axis=1)
        if not np.isfinite(made).all():
            raise NumericalError(f"the outputs of {self.name} are not finite on the data")
        return made if made.dtype == np.float64 else made.astype(np.float32)

    def read(self, batch: Batch, names: Sequence[str], visit: Visit) -> None:
        some = {name: self._products[name] for name in names}
        found = self._session(tuple(product.data for product in some.values())).run(batch)
        for name, product in some.items():
            visit(name, _joined([product.read(x) for x in found[product.data]]))

    def pulled(self, batch: Batch, names: Sequence[str], visit: Visit, seed: int) -> None:
        raise NotImplementedError("onnxruntime gives no gradients")

    def _session(self, values: tuple[str, ...] | None) -> Session:
        """Return what runs the model as it is; of those that give inner values the last is kept."""
        if values not in self._sessions:
            self._sessions = {key: one for key, one in self._sessions.items() if key is None}
            self._sessions[values] = Session(self._proto, self._arrays, self.name, values)
        return self._sessions[values]

    def machine(self) -> str:
        return f"{processor()}; onnxruntime {onnxruntime.__version__}"

    def timer(self, name: str = "", chain: Sequence[Kernel] = ()) -> Callable[[], float]:
        if not name:
            return partial(_seconds, partial(self._session(None).run, self._example))
        product, nodes, arrays = self._products[name], [self._products[name].node], self._arrays
        if chain:
            draws, bias = np.random.default_rng(0), np.zeros(product.kernel.out) if product.own_bias else None
            weights = [draws.normal(0, 0.01, stage.shape) for stage in chain]
            nodes, more = lowered(product, chain, weights, bias, arrays, self._fresh())
            arrays = arrays | more
        calls = self._read_by(product)
        session = Session(alone(self._proto, nodes, arrays, calls[0]), arrays, self.name, [product.node.output[0]])
        return partial(_seconds, lambda: [session.run(feeds) for feeds in calls])

    def timed_as(self, name: str) -> Hashable:
        product = self._products[name]
        if name not in self._shapes:
            self._shapes[name] = self._read_by(product)[0][product.data].shape
        node = product.node
        return product.kernel, node.op_type, len(node.input), product.on_the_left, self._shapes[name]

    def _read_by(self, product: Product) -> list[dict[str, Any]]:
        """Return what a node reads besides initialisers, in every call that the example takes."""
        node, stored = product.node, {tensor.name for tensor in self._proto.graph.initializer}
        names = [name for name in dict.fromkeys(node.input) if name and name not in stored]
        if self._last_read is None or list(self._last_read[0]) != names:
            found = self._session(tuple(names)).run(self._example)
            calls = zip(*(found[name] for name in names), strict=True)
            self._last_read = [dict(zip(names, arrays, strict=True)) for arrays in calls]
        return self._last_read

    # Changing it

    def copy(self) -> OnnxNetwork:
        other = copy.copy(self)
        other._proto = ModelProto()
        other._proto.CopyFrom(self._proto)
        other._arrays, other._sessions = dict(self._arrays), dict(self._sessions)
        other.replaced = dict(self.replaced)
        return other

    def settled(self, dense: OnnxNetwork, batches: Sequence[Batch]) -> OnnxNetwork | None:
        return None  # exporters fold batch norms, and those that are left are not told apart from other sums

    def replace_(
        self, name: str, form: str, ranks: Sequence[int], weights: Sequence[Array], bias: Array | None
    ) -> None:
        product, graph = self._products[name], self._proto.graph
        nodes, arrays = lowered(
            product, stages(product.kernel, form, ranks), weights, bias, self._arrays, self._fresh()
        )  # fmt: skip
        made = list(graph.node)
        at = next(i for i, node in enumerate(made) if node.output[0] == product.node.output[0])
        made[at : at + 1] = nodes
        del graph.node[:]
        graph.node.extend(made)
        read = {value for node in made for value in read_by(node)} | {one.name for one in graph.output}
        unread = {product.weight, product.own_bias} - read
        remove_(self._proto, unread)
        for one in unread:
            self._arrays.pop(one, None)
        for key, array in arrays.items():
            add_(self._proto, key, array)
        self._arrays |= arrays
        self._sessions, self._shapes, self._last_read = {}, {}, None
        self.replaced[name] = form, tuple(ranks)

    def _fresh(self) -> Callable[[str], str]:
        """Return what gives names that nothing in the model has, like others."""
        graph = self._proto.graph
        used = {one.name for some in (graph.node, graph.initializer, graph.input, graph.output) for one in some}
        used.update(value for node in graph.node for value in (*node.output, *read_by(node)))

        def fresh(like: str) -> str:
            name = next(name for i in itertools.count(1) if (name := f"{like}_factor_{i}") not in used)
            used.add(name)
            return name

        return fresh


def _seconds(work: Callable[[], Any]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def _joined(calls: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Return the arrays of several calls as one, half precision as float32."""
    arrays = [np.atleast_1d(np.asarray(one)) for one in calls]
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return whole.astype(np.float32) if whole.dtype == np.float16 else whole
