"""ONNX models run by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from eckart.errors import InputError
from eckart.models._network import Batch
from eckart.models._onnx_file import Arrays, filled, refer_, remove_
from eckart.models._onnx_nodes import read_by

__all__ = ["Session"]

SMALL = 1024  # bytes, up to which an initialiser stays in the proto, where onnxruntime can fold it
REFUSED = (
    _state.Fail, _state.InvalidArgument, _state.InvalidGraph, _state.InvalidProtobuf, _state.NotImplemented,
    _state.RuntimeException, _state.NoSuchFile, _state.EPFail, RuntimeError, TypeError, ValueError,
)  # fmt: skip
FATAL_ONLY = 4  # of onnxruntime's log levels: what goes wrong is raised as well


class Session:
    """A model that can be run. outputs: the values that are wanted, None for the model's own; what they do not need is
    not run.

    InputError: onnxruntime does not run it.
    """

    def __init__(self, proto: ModelProto, arrays: Arrays, name: str, outputs: Sequence[str] | None = None) -> None:
        self.name = name
        self.inputs = {one.name: one for one in proto.graph.input if one.name not in _initialisers(proto)}
        self.outputs = [one.name for one in proto.graph.output] if outputs is None else list(dict.fromkeys(outputs))
        self._given = [one for one in self.outputs if one in self.inputs]
        made = _for_outputs(proto, [one for one in self.outputs if one not in self.inputs], as_stated=outputs is None)
        large = {}
        for tensor in made.graph.initializer:
            if (array := arrays.get(tensor.name)) is None:
                continue
            if array.nbytes <= SMALL or tensor.data_type == TensorProto.BFLOAT16:
                filled(tensor, array)
            else:
                large[tensor.name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
                refer_(tensor, "in memory", 0, array.nbytes)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others use these cores as well
        options.add_external_initializers(list(large), list(large.values()))
        self._kept = large  # the session reads their memory
        self._session = None
        if made.graph.output:
            try:
                self._session = onnxruntime.InferenceSession(
                    made.SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            except REFUSED as error:
                raise InputError(f"onnxruntime does not run {name}", why=_first_line(error), code="E-onnx") from error

    def run(self, batch: Batch) -> dict[str, list[np.ndarray[Any, Any]]]:
        """Return the outputs by name, in each the arrays of the calls that a batch takes: several where the model has a
        fixed number of examples. InputError: the batch does not fit.
        """
        found: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in self.outputs}
        wanted = [name for name in self.outputs if name not in self._given]
        for feeds in self._calls(self._feeds(batch)):
            values: list[Any] = []
            if self._session is not None:
                try:
                    values = self._session.run(wanted, feeds)
                except REFUSED as error:
                    raise self._misfit(_first_line(error)) from error
            for name, value in (*zip(wanted, values, strict=True), *((name, feeds[name]) for name in self._given)):
                found[name].append(value)
        return found

    def _feeds(self, batch: Batch) -> dict[str, np.ndarray[Any, Any]]:
        if isinstance(batch, Mapping):
            named = dict(batch)
        else:
            values = batch if isinstance(batch, (list, tuple)) else (batch,)
            if len(values) != len(self.inputs):
                raise self._misfit(f"a batch holds {len(values)} arrays")
            named = dict(zip(self.inputs, values, strict=True))
        if set(named) != set(self.inputs):
            raise self._misfit(f"a batch holds {', '.join(map(repr, named))}")
        return {name: self._cast(name, value) for name, value in named.items()}

    def _cast(self, name: str, value: Any) -> np.ndarray[Any, Any]:
        array, kind = np.asarray(value), self.inputs[name].type.tensor_type.elem_type
        if not kind:
            raise self._misfit(f"{name} is no tensor")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise self._misfit(f"{name} is {array.dtype.name} in the data")
        return np.ascontiguousarray(array, dtype=dtype)

    def _calls(self, feeds: dict[str, np.ndarray[Any, Any]]) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        """Divide a batch of examples into those that a model of a fixed number of them takes at once."""
        fixed = {_fixed(one) for one in self.inputs.values()}
        counts = {len(x) if x.ndim else 0 for x in feeds.values()}
        if len(fixed) == len(counts) == 1 and (one := max(fixed)) and (n := max(counts)) > one and n % one == 0:
            for start in range(0, n, one):
                yield {name: x[start : start + one] for name, x in feeds.items()}
        else:
            yield feeds

    def _misfit(self, why: str) -> InputError:
        inputs = ", ".join(
            f"{name} {_type(one)}[{', '.join(_dims(one))}]" for name, one in self.inputs.items()
        )  # fmt: skip
        return InputError(
            f"{self.name} cannot be called with a batch of data=: {why}",
            fix=f"its inputs are {inputs}: an array if there is one, a tuple of all, or a dict by name",
        )


def _initialisers(proto: ModelProto) -> set[str]:
    return {tensor.name for tensor in proto.graph.initializer}


def _for_outputs(proto: ModelProto, outputs: Sequence[str], *, as_stated: bool) -> ModelProto:
    """Return a model that gives these values, with the nodes and the initialisers that they need."""
    made = ModelProto()
    made.CopyFrom(proto)
    if as_stated:
        return made
    del made.graph.output[:]
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    needed, used = set(outputs), []
    for node in reversed(made.graph.node):
        if needed & set(node.output):
            used.append(node)
            needed.update(read_by(node))
    nodes = list(reversed(used))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    remove_(made, _initialisers(made) - needed)
    return made


def _fixed(value: onnx.ValueInfoProto) -> int:
    """Return the first dimension that an input must have, 0 where any will do."""
    shape = value.type.tensor_type.shape.dim
    return int(shape[0].dim_value) if shape and shape[0].HasField("dim_value") else 0


def _type(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type.elem_type
    return onnx.helper.tensor_dtype_to_np_dtype(kind).name if kind else "of no tensor type"


def _dims(value: onnx.ValueInfoProto) -> list[str]:
    return [str(dim.dim_value) if dim.HasField("dim_value") else "any" for dim in value.type.tensor_type.shape.dim]


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
