"""Which nodes of an ONNX graph multiply by stored weights, and the kernels that these are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto

from eckart.errors import InputError
from eckart.models._kernel import Kernel, useful_forms
from eckart.models._model import Layer
from eckart.models._onnx_file import Arrays, shell
from eckart.models._onnx_nodes import Product, attributes, read_by

__all__ = ["products"]


def products(proto: ModelProto, arrays: Arrays) -> dict[str, Product]:
    """Return what multiplies by an initialiser, by a name that is the node's where no other node has it; nodes in
    subgraphs and functions are left out. InputError: attributes that do not fit the weight.
    """
    graph, found = proto.graph, dict[str, Product]()
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    readers = _readers(graph)
    for node, name in zip(graph.node, _names(graph), strict=True):
        place = _place(node, dims, made_by)
        if place is None:
            continue
        which, weight, quantised = place
        if node.op_type == "Gather" and weight not in arrays:  # of indices, such as shapes
            continue
        if not _fits(node, dims[weight]):
            raise InputError(
                f"the attributes of {name}, a {node.op_type}, do not fit its weight, {weight} of shape {dims[weight]}",
                code="E-onnx", tensor=weight,
            )  # fmt: skip
        kernel, kept = _kernel(node, dims[weight], lambda x: _lengths(proto, arrays, x), weight == node.input[0])
        bias = node.input[2] if len(node.input) > 2 and node.op_type != "Gather" else ""
        mine = bias in arrays and len(readers[bias]) == 1 and dims[bias] in ((kernel.out,), (1, kernel.out))
        kernel = replace(kernel, bias=bool(mine))
        others = [one for one in readers[weight] if one != name] or (readers[weight][1:] and [name])
        if quantised or weight not in arrays:
            kept = "its weight is quantised" if quantised else "its weight has no floating type"
        elif others:
            kept = f"its weight is that of {others[0]}"
        elif not kept and (0 in kernel.shape or not useful_forms(kernel)):
            kept = "each output reads one channel: depthwise, or one number a patch"
        layer = Layer(name, node.op_type, kernel.out, kernel.columns, kernel.bias, kept, (name,), kernel=kernel)
        found[name] = Product(node, layer, node.input[which], weight, bias if mine else "")
    return found


def _names(graph: GraphProto) -> list[str]:
    """Return a name for every node: its own, or where others have that too, or it has none, that of what it makes."""
    used = dict[str, int]()
    for node in graph.node:
        used[node.name] = used.get(node.name, 0) + 1
    made, taken = list[str](), set(used)
    for i, node in enumerate(graph.node):
        name = node.name
        if not name or used[name] > 1:
            name = next(filter(None, node.output), f"{node.op_type}_{i}")
            while name in taken:
                name += "_"
            taken.add(name)
        made.append(name)
    return made


def _readers(graph: GraphProto) -> dict[str, list[str]]:
    """Return by value the names of the nodes that read it, one that reads it twice twice."""
    found: dict[str, list[str]] = {}
    for node, name in zip(graph.node, _names(graph), strict=True):
        for value in read_by(node):
            found.setdefault(value, []).append(name)
    for one in graph.output:
        found.setdefault(one.name, []).append("an output of the model")
    return found


def _place(node: NodeProto, dims: Mapping[str, Any], made_by: Mapping[str, NodeProto]) -> tuple[int, str, bool] | None:
    """Return which input of a node is the data, the initialiser that it multiplies this by, and whether that is first
    dequantised; None where the node is no product of data with an initialiser.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose", "Gather"):
        return None

    def behind(name: str) -> tuple[str, bool]:
        maker = made_by.get(name)
        quantised = maker is not None and maker.op_type == "DequantizeLinear"
        return (maker.input[0], True) if maker is not None and quantised else (name, False)

    first, second = behind(node.input[0]), behind(node.input[1])
    if node.op_type == "Gather":
        axis = attributes(node).get("axis", 0)
        table = first[0] in dims and second[0] not in dims and len(dims[first[0]]) == 2 and axis == 0
        return (1, *first) if table else None
    if second[0] in dims and first[0] not in dims:
        return (0, *second) if dims[second[0]] else None
    if node.op_type == "MatMul" and first[0] in dims and second[0] not in dims:
        return (1, *first) if dims[first[0]] else None
    return None


def _fits(node: NodeProto, shape: tuple[int, ...]) -> bool:
    """Return whether the attributes of a node have as many entries as its weight has axes, and sensible ones."""
    if node.op_type == "Gemm":
        return len(shape) == 2
    if node.op_type not in ("Conv", "ConvTranspose"):
        return True
    axes, given = len(shape) - 2, attributes(node)
    groups = given.get("group", 1)
    counts = {"strides": axes, "dilations": axes, "pads": 2 * axes, "output_padding": axes, "kernel_shape": axes}
    return (
        axes > 0
        and all(len(given[name]) == count for name, count in counts.items() if name in given)
        and min((*given.get("strides", ()), *given.get("dilations", ())), default=1) > 0
        and tuple(given.get("kernel_shape", shape[2:])) == shape[2:]
        and groups > 0
        and shape[0] % groups == 0
    )


def _kernel(
    node: NodeProto, shape: tuple[int, ...], lengths: Callable[[str], Sequence[int] | None], first: bool
) -> tuple[Kernel, str]:
    """Return the kernel of a product with weights of this shape, and why it is kept, or "". first: whether the weights
    are the node's first input. lengths: gives those of a value, where the file says what they are.
    """
    given = attributes(node)
    if node.op_type in ("Conv", "ConvTranspose"):
        return _convolution(node, given, shape, lengths)
    if node.op_type == "Gather":
        return Kernel(shape[0], shape[1]), "an embedding: its rows are looked up"
    if node.op_type == "MatMul" and len(shape) != 2:
        kept = "its weight is a vector" if len(shape) == 1 else "its weight is a stack of matrices"
        return Kernel(int(np.prod(shape[:-2])) * (shape[-1] if len(shape) > 1 else 1), shape[-2:][0]), kept
    turned = given.get("transB", 0) if node.op_type == "Gemm" else first
    out, into = shape if turned else shape[::-1]
    return Kernel(out, into), ""


def _convolution(
    node: NodeProto, given: Mapping[str, Any], shape: tuple[int, ...], lengths: Callable[[str], Sequence[int] | None]
) -> tuple[Kernel, str]:
    axes, groups, transposed = len(shape) - 2, given.get("group", 1), node.op_type == "ConvTranspose"
    ones, zeros = (1,) * axes, (0,) * axes
    stride, dilation = tuple(given.get("strides", ones)), tuple(given.get("dilations", ones))
    kernel = Kernel(
        out=shape[1] * groups if transposed else shape[0],
        into=shape[0] // groups if transposed else shape[1],
        size=shape[2:], stride=stride, padding=((0, 0),) * axes, dilation=dilation, groups=groups,
        transposed=transposed,
    )  # fmt: skip
    more, auto = given.get("output_padding", zeros), given.get("auto_pad", b"NOTSET")
    if transposed and "output_shape" in given:
        return kernel, "its padding follows from the length of the output"
    before, after = tuple(given.get("pads", zeros * 2))[:axes], tuple(given.get("pads", zeros * 2))[axes:]
    if auto == b"VALID":
        before, after = zeros, zeros
    elif auto in (b"SAME_UPPER", b"SAME_LOWER"):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel.size, strict=True)]
        steps = list(zip(reach, stride, strict=True))
        n = lengths(node.input[0]) if not transposed and max(stride) > 1 else ones
        if n is None:
            return kernel, f"its padding, {auto.decode()}, follows from the length of the input"
        if transposed:
            total = [r + 1 + extra - s for (r, s), extra in zip(steps, more, strict=True)]
        else:
            total = [max((-(-one // s) - 1) * s + r + 1 - one, 0) for (r, s), one in zip(steps, n, strict=True)]
        halves = [(p // 2, p - p // 2) for p in total]
        halves = halves if auto == b"SAME_UPPER" else [half[::-1] for half in halves]
        before, after = (tuple(half[i] for half in halves) for i in (0, 1))
    if min((*before, *after), default=0) < 0:
        return kernel, "its padding is negative"
    ends = tuple(pad - extra for pad, extra in zip(after, more, strict=True)) if transposed else after
    return replace(kernel, padding=tuple(zip(before, ends, strict=True))), ""


def _lengths(proto: ModelProto, arrays: Arrays, name: str) -> list[int] | None:
    """Return the lengths of a value after its first two axes, where the file says what they are."""
    try:
        graph = onnx.shape_inference.infer_shapes(shell(proto, arrays)).graph
    except onnx.shape_inference.InferenceError:  # shapes that contradict each other: onnxruntime says so
        return None
    for value in (*graph.value_info, *graph.input):
        if value.name == name and value.type.tensor_type.HasField("shape"):
            found = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in value.type.tensor_type.shape.dim]
            return found[2:] if len(found) > 2 and all(found[2:]) else None
    return None
