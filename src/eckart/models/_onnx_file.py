"""ONNX files: read so that nothing outside of their folder is touched, and written whole or not at all.

A model in memory is a ModelProto and, beside it, the values of its floating-point initialisers by name: those have a
type and a shape in the proto and no data. Protocol buffers end at 2 GB, and a proto without weights is cheap to copy.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from eckart._files import cannot_write, check_room, refuse_existing, write_whole
from eckart.errors import InputError
from eckart.models._sizes import format_size
from eckart.models._untrusted import member, open_file, truncated

__all__ = [
    "FLOATING",
    "Arrays",
    "add_",
    "filled",
    "numbers_of",
    "read_model",
    "refer_",
    "remove_",
    "shell",
    "write_model",
]

Arrays = dict[str, np.ndarray[Any, Any]]

FLOATING = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}
MAX_PROTO_BYTES = (1 << 31) - 1  # of a protocol buffer
LARGEST_INLINE = 1_800_000_000  # bytes of values, above which they are written to a file of their own
ALIGNED = 4096  # bytes: what the ONNX specification asks offsets to be multiples of, so that a file can be mapped
IMPLICIT = 4  # the first IR version in which an initialiser need not be an input of the graph


def read_model(path: Path) -> tuple[ModelProto, Arrays]:
    """Return a model and the values of its floating-point initialisers, matrices in Constant nodes among them.

    InputError: no ONNX model, one that onnx.checker refuses, or data that is missing or cut short. UnsafeInputError:
    data outside of the file's folder. Nothing in it is executed.
    """
    with open_file(path) as (file, size):
        if size > MAX_PROTO_BYTES:
            raise InputError(f"{path} is {format_size(size)}, and an ONNX file has at most 2 GB", file=str(path))
        data = file.read(size)
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise _broken(path, str(error)) from error
    names = [tensor.name for tensor in proto.graph.initializer]
    if len(set(names)) < len(names):
        raise _broken(path, "two of its initialisers have the same name")
    _load_(proto, path)
    _lift_(proto)
    try:
        arrays = {t.name: _taken(t) for t in proto.graph.initializer if t.data_type in FLOATING}
        onnx.checker.check_model(shell(proto, arrays))
    except (onnx.checker.ValidationError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise _broken(path, str(error)) from error
    return proto, arrays


def shell(proto: ModelProto, arrays: Mapping[str, Any]) -> ModelProto:
    """Return a model in which the initialisers without data are inputs, which is valid and small."""
    made = ModelProto()
    made.CopyFrom(proto)
    stated = {one.name for one in made.graph.input}
    for t in made.graph.initializer:
        if t.name in arrays and t.name not in stated:
            made.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    _leave_(made.graph.initializer, lambda t: t.name not in arrays)
    return made


def filled(tensor: TensorProto, array: np.ndarray[Any, Any]) -> None:
    """Give an initialiser its values."""
    tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def refer_(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Say of an initialiser where its values are."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def add_(proto: ModelProto, name: str, array: np.ndarray[Any, Any]) -> None:
    """Add an initialiser without data."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    _declare_(proto, proto.graph.initializer.add(name=name, data_type=kind, dims=array.shape))


def remove_(proto: ModelProto, names: set[str]) -> None:
    """Remove initialisers, and the inputs of the graph that they are defaults of."""
    _leave_(proto.graph.initializer, lambda one: one.name not in names)
    _leave_(proto.graph.input, lambda one: one.name not in names)
    _leave_(proto.graph.quantization_annotation, lambda one: one.tensor_name not in names)


def _leave_(some: Any, which: Callable[[Any], bool]) -> None:
    """Leave of a repeated field what `which` is true of, in one pass: its own `remove` compares whole messages."""
    left = [one for one in some if which(one)]
    if len(left) < len(some):
        del some[:]
        some.extend(left)


def numbers_of(proto: ModelProto) -> tuple[int, int]:
    """Return how many numbers the initialisers of a model have, and how many bytes these take."""
    tensors = (*proto.graph.initializer, *(sparse.values for sparse in proto.graph.sparse_initializer))
    return sum(prod(t.dims) for t in tensors), sum(map(_bytes, tensors))


@contextlib.contextmanager
def write_model(proto: ModelProto, arrays: Arrays, path: Path) -> Iterator[Path]:
    """Write a model and give its file under another name; it gets its own, and a file NAME.data beside it where the
    values take more than LARGEST_INLINE bytes, when the block is left without an error, and vanishes otherwise.
    """
    beside = path.with_name(f"{path.name}.data")
    total = sum(array.nbytes for array in arrays.values())
    apart = total > LARGEST_INLINE
    for one in (path, *([beside] if apart else [])):
        refuse_existing(one)
    check_room(path.parent, total)
    made = ModelProto()
    made.CopyFrom(proto)
    with _folder_beside(path) as folder:
        if apart:
            with write_whole(folder / beside.name) as file:
                for tensor in made.graph.initializer:
                    if tensor.name in arrays:
                        file.write(b"\0" * (-file.tell() % ALIGNED))
                        refer_(tensor, beside.name, file.tell(), arrays[tensor.name].nbytes)
                        file.write(np.ascontiguousarray(arrays[tensor.name]).reshape(-1).view(np.uint8).data)
        else:
            for tensor in made.graph.initializer:
                if tensor.name in arrays:
                    filled(tensor, arrays[tensor.name])
        with write_whole(folder / path.name) as file:
            file.write(made.SerializeToString())
        del made
        onnx.checker.check_model(str(folder / path.name))
        yield folder / path.name
        if apart:
            os.rename(folder / beside.name, beside)
        try:
            os.rename(folder / path.name, path)
        except OSError:
            if apart:
                beside.unlink()
            raise


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    folder = path.with_name(f".{path.name}.unfinished-{secrets.token_hex(4)}")
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _broken(path: Path, why: str) -> InputError:
    return InputError(f"{path} is not a valid ONNX model", why=why.strip()[:300], file=str(path), code="E-onnx")


def _taken(tensor: TensorProto) -> np.ndarray[Any, Any]:
    """Return the values of a tensor and take them out of it; ValueError: not as many as its shape says."""
    if any(n < 0 for n in tensor.dims):
        raise ValueError(f"{tensor.name} has the shape {list(tensor.dims)}")
    array = onnx.numpy_helper.to_array(tensor)
    for field in ("raw_data", "float_data", "double_data", "int32_data"):
        tensor.ClearField(field)
    return array


def _lift_(proto: ModelProto) -> None:
    """Make initialisers of matrices and kernels that Constant nodes hold."""
    lifted = {node.output[0]: value for node in proto.graph.node if (value := _matrix_in(node)) is not None}
    for name, value in lifted.items():
        tensor = proto.graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = name
        _declare_(proto, tensor)
    _leave_(proto.graph.node, lambda node: not node.output or node.output[0] not in lifted)


def _matrix_in(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    value = next((a.t for a in node.attribute if a.name == "value"), None)
    return value if value is not None and value.data_type in FLOATING and len(value.dims) > 1 else None


def _declare_(proto: ModelProto, tensor: TensorProto) -> None:
    """Make an input of a new initialiser where the format asks for that."""
    if proto.ir_version < IMPLICIT:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(value)


# Data in other files


def _load_(proto: ModelProto, path: Path) -> None:
    """Read what is in other files into the model."""
    regions: dict[tuple[Path, int, int], bytes] = {}  # so that a file of many names for one place stays small
    sizes: dict[Path, int] = {}
    for tensor in _tensors(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        file = member(path.parent, where.get("location", "").removeprefix("./"), named_in=str(path))
        wanted = _bytes(tensor)
        try:
            offset, length = int(where.get("offset", "0")), int(where.get("length", wanted))
        except ValueError as error:
            raise _broken(path, f"{tensor.name}: {error}") from error
        if offset < 0 or length != wanted:
            raise _broken(path, f"{tensor.name} takes {wanted} bytes and is said to be {length} from {offset} on")
        region = file, offset, length
        if region not in regions:
            with open_file(file) as (opened, size):
                if offset + length > size:
                    raise truncated(file, size, f"{tensor.name} ends at byte {offset + length:,}")
                sizes[file] = size
                if sum(n for _, _, n in regions) + length > sum(sizes.values()):
                    raise _broken(path, "its tensors overlap each other in the file that holds them")
                opened.seek(offset)
                regions[region] = opened.read(length)
        tensor.raw_data = regions[region]
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT


def _bytes(tensor: TensorProto) -> int:
    """Return what the values of a tensor take as raw data."""
    kinds = onnx.helper.get_all_tensor_dtypes()
    if tensor.data_type not in kinds or tensor.data_type == TensorProto.STRING:
        return 0
    bits = BITS.get(tensor.data_type) or 8 * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return -(-int(prod(tensor.dims)) * bits // 8)


def _tensors(proto: ModelProto) -> Iterator[TensorProto]:
    yield from _in_graph(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _in_node(node)


def _in_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _in_node(node)


def _in_node(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _in_graph(graph)
