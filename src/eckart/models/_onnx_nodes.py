"""Nodes of an ONNX graph that multiply by stored weights, and chains of kernels as nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto

from eckart.errors import NumericalError
from eckart.models._kernel import Kernel, Pads
from eckart.models._model import Layer
from eckart.models._onnx_file import Arrays, add_

__all__ = ["Product", "alone", "attributes", "lowered", "read_by"]

Matrix = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Product:
    """A node that multiplies by an initialiser, `weight`. data: the name of what it multiplies.

    own_bias: the initialiser that no other node adds, or "": what it adds else stays its input.
    """

    node: NodeProto
    layer: Layer
    data: str
    weight: str
    own_bias: str = ""

    @property
    def kernel(self) -> Kernel:
        assert self.layer.kernel is not None
        return self.layer.kernel

    @property
    def on_the_left(self) -> bool:
        """Whether the weights are the left factor of a matrix product."""
        return self.node.op_type == "MatMul" and self.node.input[0] == self.weight

    def read(self, x: Matrix) -> Matrix:
        """Return an input of the node as an input of the kernel."""
        turned = attributes(self.node).get("transA", 0) if self.node.op_type == "Gemm" else self.on_the_left
        return np.swapaxes(x, -1, -2) if turned and x.ndim > 1 else x

    def weights(self, arrays: Arrays) -> tuple[Matrix, Matrix | None]:
        """Return the weights as Kernel orders them, and the bias; half precision as float32."""
        given, w = attributes(self.node), _single(arrays[self.weight])
        bias = _single(arrays[self.own_bias]).reshape(-1) if self.own_bias else None
        if self.node.op_type == "Gemm":
            w = given.get("alpha", 1.0) * (w if given.get("transB", 0) else w.T)
            bias = None if bias is None else given.get("beta", 1.0) * bias
        elif self.node.op_type == "MatMul":
            w = w if self.on_the_left else w.T
        elif self.node.op_type == "ConvTranspose":
            w = _exchanged(w, self.kernel.groups)
        return w, bias


def lowered(
    product: Product,
    chain: Sequence[Kernel],
    weights: Sequence[Matrix],
    bias: Matrix | None,
    arrays: Arrays,
    fresh: Callable[[str], str],
) -> tuple[list[NodeProto], Arrays]:
    """Return the nodes of a chain that take the place of a product, and the initialisers these have of their own.

    bias: of a product that has its own. fresh: gives a name that is free. NumericalError: a weight is beyond the range
    of the type that it had.
    """
    old, made, x = product.node, list[NodeProto](), product.data
    made_arrays: Arrays = {}

    def stored(array: Matrix, like: str) -> str:
        name = fresh(like)
        with np.errstate(over="ignore"):
            made_arrays[name] = np.ascontiguousarray(array.astype(arrays[like].dtype))
        if not np.isfinite(made_arrays[name].astype(np.float32)).all():
            raise NumericalError(f"a factor of {product.layer.name} is beyond the range of {arrays[like].dtype.name}")
        return name

    added = stored(bias, product.own_bias) if bias is not None else old.input[2] if len(old.input) > 2 else ""
    if old.op_type == "Gemm" and attributes(old).get("transA", 0):
        made.append(onnx.helper.make_node("Transpose", [x], [fresh(old.output[0])], fresh(product.layer.name)))
        x = made[-1].output[0]
    for i, (stage, w) in enumerate(zip(chain, weights, strict=True)):
        last = i == len(chain) - 1
        node = NodeProto(op_type=old.op_type, domain=old.domain)
        node.output.append(old.output[0] if last else fresh(old.output[0]))
        if last:
            node.name, node.doc_string = old.name, old.doc_string
            node.metadata_props.extend(old.metadata_props)
        else:
            node.name = fresh(product.layer.name)
        if stage.size:
            _convolve_(node, stage)
            w = _exchanged(w, stage.groups) if stage.transposed else w
            node.input.extend([x, stored(w, product.weight), *([added] if last and added else [])])
        elif product.on_the_left:
            node.input.extend([stored(w, product.weight), x])
        elif last and added:
            node.input.extend([x, stored(w.T, product.weight), added])
            kept = ("broadcast",) if bias is not None else ("broadcast", "beta")
            node.attribute.extend(one for one in old.attribute if one.name in kept)
        else:
            node.op_type = "MatMul"
            node.input.extend([x, stored(w.T, product.weight)])
        x = node.output[0]
        made.append(node)
    return made, made_arrays


def alone(proto: ModelProto, nodes: Sequence[NodeProto], arrays: Arrays, read: Arrays) -> ModelProto:
    """Return a model of some of the nodes, with what they read, by value, as inputs, and all initialisers."""
    made = ModelProto()
    made.CopyFrom(proto)
    there = {tensor.name for tensor in made.graph.initializer}
    for name in sorted(set(arrays) - there):
        add_(made, name, arrays[name])
    values = [one for one in made.graph.input if one.name in there]
    for some in (made.graph.node, made.graph.input):
        del some[:]
    made.graph.node.extend(nodes)
    made.graph.input.extend(values)
    for name, x in read.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        made.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * x.ndim))
    return made


def read_by(node: NodeProto) -> Iterator[str]:
    """Iterate over the names of all values that a node reads, in its subgraphs as well."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (one.name for one in graph.output)
            for inner in graph.node:
                yield from read_by(inner)


def _single(array: Matrix) -> Matrix:
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _exchanged(weight: Matrix, groups: int) -> Matrix:
    """Return the weights of a transposed convolution as those of a correlation, or the other way round."""
    first, second, *size = weight.shape
    apart = weight.reshape(groups, first // groups, second, *size).swapaxes(1, 2)
    return np.flip(apart.reshape(groups * second, first // groups, *size), tuple(range(2, weight.ndim)))


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node, without subgraphs."""
    graphs = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.type not in graphs}


def _convolve_(node: NodeProto, stage: Kernel) -> None:
    """Give a node the attributes of a convolution."""
    pads: Pads = tuple((before, max(after, 0)) for before, after in stage.padding)
    given: dict[str, Any] = {
        "kernel_shape": stage.size, "strides": stage.stride, "dilations": stage.dilation, "group": stage.groups,
        "pads": [before for before, _ in pads] + [after for _, after in pads],
    }  # fmt: skip
    node.op_type = "ConvTranspose" if stage.transposed else "Conv"
    if any(after < 0 for _, after in stage.padding):
        given["output_padding"] = [max(-after, 0) for _, after in stage.padding]
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in given.items())
