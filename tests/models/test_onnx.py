"""ONNX files: nodes as kernels, chains in their place, and whole files compressed without any other framework."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as _state

import eckart
from eckart._compress._kernels import Grams, factored
from eckart.errors import InputError, NumericalError, OutputError, UsageError
from eckart.models import _onnx_file
from eckart.models._kernel import Kernel, largest_ranks, patches, stages, useful_forms
from eckart.models._onnx_network import OnnxNetwork

OPSET = 17
FAILURES = (_state.InvalidArgument, _state.Fail, _state.NotImplemented)


def model(
    nodes: Sequence[onnx.NodeProto], weights: dict[str, Any], inputs: dict[str, Any], ir: int = 8, **more: Any
) -> onnx.ModelProto:
    """Return a model with the output "y"; inputs: shapes, of the type of the first floating-point weight."""
    dtypes = [np.asarray(w).dtype for w in weights.values()]
    kind = helper.np_dtype_to_tensor_dtype(next((d for d in dtypes if d.kind == "f"), np.dtype(np.float32)))
    values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()]
    initialisers = [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()]
    if ir < 4:
        values += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initialisers]
    bare = onnx.ValueInfoProto(name="y")
    bare.type.tensor_type.elem_type = kind
    graph = helper.make_graph(nodes, "net", values, [bare], initialisers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=ir, **more)
    inferred = onnx.shape_inference.infer_shapes(made).graph.output
    made.graph.output[0].CopyFrom(inferred[0])
    return made


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[onnx.ModelProto, np.ndarray[Any, Any]]:
    """Draw a model of one convolution, and an input that is long enough for it."""
    draws = np.random.default_rng(draw(st.integers(0, 2**16)))
    axes, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    per_axis = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    size, stride, dilation = draw(per_axis), draw(per_axis), draw(per_axis)
    groups = draw(st.sampled_from([1, 1, 2]))
    out, into = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    given: dict[str, Any] = {"strides": stride, "dilations": dilation, "group": groups}
    auto = draw(st.sampled_from(["", "", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto.startswith("SAME") and not transposed:  # onnxruntime runs no such convolution with dilations
        given["dilations"] = [1] * axes
    if auto:
        given["auto_pad"] = auto
    else:
        given["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * axes)]
    if transposed and draw(st.booleans()):
        given["output_padding"] = [
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, given["dilations"], strict=True)
        ]
    lengths = [
        2 * max(given.get("pads", [0])) + d * (k - 1) + draw(st.integers(1, 3))
        for d, k in zip(given["dilations"], size, strict=True)
    ]
    shape = (groups * into, out, *size) if transposed else (groups * out, into, *size)
    weights = {"W": draws.standard_normal(shape).astype(np.float32)}
    if draw(st.booleans()):
        weights["b"] = draws.standard_normal(groups * out).astype(np.float32)
    kind = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(kind, ["x", *weights], ["y"], name="layer", **given)
    x = draws.standard_normal((2, groups * into, *lengths)).astype(np.float32)
    ir = draw(st.sampled_from([3, 8]))
    return model([node], weights, {"x": ["n", *x.shape[1:]]}, ir), x


@st.composite
def matrices(draw: st.DrawFn) -> tuple[onnx.ModelProto, np.ndarray[Any, Any]]:
    """Draw a model of one matrix product, and an input."""
    draws = np.random.default_rng(draw(st.integers(0, 2**16)))
    out, into, n = draw(st.integers(2, 6)), draw(st.integers(2, 6)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["right", "left", "gemm"]))
    if kind == "gemm":
        turned_x, turned_w = draw(st.booleans()), draw(st.booleans())
        shapes = draw(st.sampled_from([None, (out,), (1, out), (n, 1), ()]))
        given = {"transA": int(turned_x), "transB": int(turned_w), "alpha": draw(st.sampled_from([1.0, -0.3]))}
        w = draws.standard_normal((out, into) if turned_w else (into, out))
        weights = {"W": w.astype(np.float32)}
        if shapes is not None:
            weights["b"] = draws.standard_normal(shapes).astype(np.float32)
            given["beta"] = draw(st.sampled_from([1.0, 2.0]))
        node = helper.make_node("Gemm", ["x", *weights], ["y"], name="layer", **given)
        x = draws.standard_normal((into, n) if turned_x else (n, into))
    else:
        left = kind == "left"
        weights = {"W": draws.standard_normal((out, into) if left else (into, out)).astype(np.float32)}
        node = helper.make_node("MatMul", ["W", "x"] if left else ["x", "W"], ["y"], name="layer")
        x = draws.standard_normal((3, into, n) if left else (3, n, into))
    return model([node], weights, {"x": x.shape}), x.astype(np.float32)


@given(drawn=convolutions())
def test_a_chain_of_full_rank_is_the_convolution(drawn: tuple[onnx.ModelProto, Any], tmp_path_factory: Any) -> None:
    check_chains(*drawn, tmp_path_factory.mktemp("law") / "model.onnx")


@given(drawn=matrices())
def test_a_pair_of_full_rank_is_the_matrix(drawn: tuple[onnx.ModelProto, Any], tmp_path_factory: Any) -> None:
    check_chains(*drawn, tmp_path_factory.mktemp("law") / "model.onnx")


def check_chains(made: onnx.ModelProto, x: Any, path: Path) -> None:
    """Fail unless every chain of full rank gives what the model's one layer gives."""
    onnx.save(made, path)
    network = OnnxNetwork(path, x)
    try:
        expected = session(path).run(None, {"x": x})[0]
    except FAILURES:
        with pytest.raises(InputError, match="cannot be called"):
            network.outputs(x)
        return
    layer = network.layers()["layer"]
    kernel, (weight, bias) = layer.kernel, network.weight("layer")
    assert kernel is not None
    assert weight.shape == kernel.shape
    if layer.kept:
        assert "negative" in layer.kept
        return
    scale = float(np.abs(weight).sum() * np.abs(x).max()) + 1
    check_reading(network, x, expected, scale)
    unit = Grams([np.eye(kernel.columns) for _ in range(kernel.groups)], None)
    for form in useful_forms(kernel):
        ranks = largest_ranks(kernel, form)
        if form == "tucker":
            ranks = ranks[0], min(ranks[1], kernel.columns)
        small = network.copy()
        small.replace_("layer", form, ranks, factored(kernel, weight, unit, (form, ranks)), bias)
        more = sum(stage.numbers for stage in stages(kernel, form, ranks)) - kernel.numbers
        assert small.parameters - network.parameters == more
        written = path.with_name(f"{form}.onnx")
        with _onnx_file.write_model(small._proto, small._arrays, written):
            pass
        close = {"rtol": 1e-4, "atol": 2e-6 * scale}
        np.testing.assert_allclose(session(written).run(None, {"x": x})[0], expected, **close)
        np.testing.assert_allclose(small.outputs(x).ravel(), expected.ravel(), **close)
    np.testing.assert_allclose(network.outputs(x).ravel(), expected.ravel(), atol=2e-6 * scale)


def check_reading(network: OnnxNetwork, x: Any, expected: Any, scale: float) -> None:
    """Fail unless what is seen of the layer's inputs, times its weights, is its output."""
    kernel, (weight, bias) = network.layers()["layer"].kernel, network.weight("layer")
    assert kernel is not None
    seen: list[Any] = []
    network.read(x, ["layer"], lambda name, array: seen.append(array))
    read = patches(seen[0], kernel, 10**9, np.random.default_rng(0))
    found = np.einsum("tgn,gmn->tgm", read, weight.reshape(kernel.groups, -1, kernel.columns)).reshape(len(read), -1)
    if bias is None and len(network._products["layer"].node.input) > 2:  # what is added is not the layer's own
        return
    y = np.moveaxis(expected, 1, -1) if kernel.size else expected
    y = np.swapaxes(y, -1, -2) if network._products["layer"].on_the_left else y
    np.testing.assert_allclose(found + (0 if bias is None else bias), y.reshape(-1, kernel.out), atol=2e-6 * scale)


def net() -> onnx.ModelProto:
    """Return a small residual net with convolutions, a shared weight, a Gemm with all its options and a MatMul."""
    draws = np.random.default_rng(0)

    def some(*shape: int) -> Any:
        return (draws.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {
        "stem.w": some(16, 3, 3, 3), "stem.b": some(16), "a.w": some(16, 16, 3, 3),
        "b.w": some(16, 16, 3, 3), "shared.w": some(24, 24), "gemm.w": some(24, 16), "gemm.b": some(24),
        "depth.w": some(16, 1, 3, 3), "last.w": some(24, 10), "last.b": some(10), "table": some(40, 10),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "stem.w", "stem.b"], ["s"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["s"], ["s1"]),
        helper.make_node("Conv", ["s1", "a.w", "stem.b"], ["a"], name="a", auto_pad="SAME_UPPER"),
        helper.make_node("Relu", ["a"], ["a1"]),
        helper.make_node("Conv", ["a1", "b.w"], ["b"], name="b", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "s1"], ["r"]),
        helper.make_node("Conv", ["r", "depth.w"], ["d"], name="depth", group=16, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["d"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "gemm.w", "gemm.b"], ["g"], name="gemm", alpha=2.0, beta=0.5, transB=1),
        helper.make_node("Relu", ["g"], ["g1"]),
        helper.make_node("MatMul", ["g1", "shared.w"], ["m"], name="m"),
        helper.make_node("MatMul", ["m", "shared.w"], ["m2"], name="m2"),
        helper.make_node("MatMul", ["m2", "last.w"], ["l"]),
        helper.make_node("Add", ["l", "last.b"], ["l1"]),
        helper.make_node("ArgMax", ["l1"], ["top"], axis=1, keepdims=0),
        helper.make_node("Gather", ["table", "top"], ["e"], name="lookup"),
        helper.make_node("Mul", ["e", "l1"], ["e1"]),
        helper.make_node("Sum", ["l1", "e1"], ["y"], name="sum"),
    ]
    made = model(nodes, weights, {"x": ["n", 3, 12, 12]}, producer_name="a tool", doc_string="a net")
    made.metadata_props.add(key="labels", value="cat, dog")
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    onnx.save(net(), path)
    return path


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    draws = np.random.default_rng(1)
    return [draws.standard_normal((16, 3, 12, 12)).astype(np.float32) for _ in range(3)]


def initialisers(path: Path) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_a_net_is_compressed_and_anything_that_reads_onnx_reads_it(
    saved: Path, batches: list[Any], tmp_path: Path
) -> None:
    out = tmp_path / "small.onnx"
    made = eckart.compress(saved, 0.6, data=batches, out=out)
    before, after = initialisers(saved), initialisers(out)
    assert sum(a.size for a in after.values()) == made.plan.parameters_after == made.parameters
    assert sum(a.nbytes for a in after.values()) == made.plan.bytes_after == made.input_bytes
    assert sum(a.size for a in before.values()) == made.plan.parameters_before
    assert made.parameters <= 0.6 * made.plan.parameters_before < 1.1 * made.parameters
    small, old = onnx.load(out), onnx.load(saved)
    onnx.checker.check_model(small, full_check=True)
    assert made.replaced
    assert (small.opset_import, small.ir_version) == (old.opset_import, old.ir_version)
    assert (small.producer_name, small.doc_string, small.graph.input) == ("a tool", "a net", old.graph.input)
    assert small.graph.output == old.graph.output
    kept = {one.key: one.value for one in small.metadata_props}
    assert kept["labels"] == "cat, dog"
    assert json.loads(kept["eckart_plan"])["parameters_after"] == made.parameters
    used = {name for node in small.graph.node for name in node.input}
    assert set(after) <= used
    truth, found = (session(path).run(None, {"x": batches[0]})[0] for path in (saved, out))
    assert np.linalg.norm(found - truth) < 0.5 * np.linalg.norm(truth)
    np.testing.assert_allclose(found, made.outputs(batches[0]), rtol=1e-4, atol=1e-4)
    assert out.stat().st_size < saved.stat().st_size + len(kept["eckart_plan"])
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_what_stays_dense_says_why(saved: Path, batches: list[Any]) -> None:
    plan = eckart.plan(saved, 0.9, data=batches)
    kept = {layer.name: layer.kept for layer in plan.layers}
    assert "depthwise" in kept.pop("depth")
    assert kept.pop("m") == "its weight is that of m2"
    assert kept.pop("m2") == "its weight is that of m"
    assert "embedding" in kept.pop("lookup")
    assert kept == {"stem": "", "a": "", "b": "", "gemm": "", "l": ""}


def test_all_of_it_is_the_net_and_a_second_time_is_possible(saved: Path, batches: list[Any], tmp_path: Path) -> None:
    whole = eckart.compress(saved, 1.0, data=batches, out=tmp_path / "whole.onnx")
    assert not whole.replaced
    np.testing.assert_array_equal(whole.outputs(batches[0]), OnnxNetwork(saved, batches[0]).outputs(batches[0]))
    eckart.compress(saved, 0.7, data=batches, out=tmp_path / "once.onnx")
    twice = eckart.compress(tmp_path / "once.onnx", 0.8, data=batches, out=tmp_path / "twice.onnx")
    assert twice.plan.parameters_after <= 0.8 * twice.plan.parameters_before
    assert [one.key for one in onnx.load(tmp_path / "twice.onnx").metadata_props].count("eckart_plan") == 1


NO_TORCH = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "keras", "tensorflow", "jax", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Missing())
import numpy, eckart
data = [numpy.random.default_rng(0).standard_normal((16, 3, 12, 12))]
made = eckart.compress(sys.argv[1], 0.7, data=data, out=sys.argv[2])
assert made.replaced and "torch" not in sys.modules
"""


def test_no_other_framework_is_needed(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    subprocess.run([sys.executable, "-W", "error", "-c", NO_TORCH, str(saved), str(out)], check=True)
    onnx.checker.check_model(out)


def test_the_command_line_reads_inputs_from_files(saved: Path, batches: list[Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=np.concatenate(batches))
    out = tmp_path / "small.onnx"
    command = ["compress", str(saved), "--keep", "0.6", "--data", str(tmp_path / "inputs.npz"), "-o", str(out)]
    done = subprocess.run([sys.executable, "-m", "eckart", *command, "-q"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bytes of weights" in done.stdout
    onnx.checker.check_model(out)
    again = subprocess.run([sys.executable, "-m", "eckart", *command, "-q"], capture_output=True, text=True)
    assert again.returncode == OutputError.status
    done = subprocess.run(
        [sys.executable, "-m", "eckart", *command[:-1], str(tmp_path / "other.onnx"), "-q", "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["saved"]["path"].endswith("other.onnx")


def test_files_are_divided_into_batches(saved: Path, batches: list[Any], tmp_path: Path) -> None:
    x = np.concatenate(batches)
    np.save(tmp_path / "x.npy", x)
    np.savez_compressed(tmp_path / "named.npz", x=x)
    np.savez(tmp_path / "plain.npz", x)
    forms = ([x[:32], x[32:]], tmp_path / "x.npy", str(tmp_path / "named.npz"), [tmp_path / "plain.npz"])
    plans = [eckart.plan(saved, 0.7, data=data).to_json() for data in forms]
    assert all(plan == plans[0] for plan in plans[1:])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_types_are_kept(dtype: str, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    weights = {"w": draws.standard_normal((32, 32)), "v": draws.standard_normal((32, 4)), "b": np.ones(4)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="first"),
        helper.make_node("Gemm", ["m", "v", "b"], ["y"], name="second"),
    ]
    made = model(nodes, {name: w.astype(dtype) for name, w in weights.items()}, {"x": ["n", 32]})
    onnx.save(made, tmp_path / "net.onnx")
    out, x = tmp_path / "small.onnx", draws.standard_normal((64, 32))
    small = eckart.compress(tmp_path / "net.onnx", 0.6, data=[x], out=out)
    assert small.replaced
    assert {array.dtype.name for array in initialisers(out).values()} == {dtype}
    assert sum(array.nbytes for array in initialisers(out).values()) == small.plan.bytes_after
    assert session(out).run(None, {"x": x.astype(dtype)})[0].dtype == dtype
    with pytest.raises(UsageError, match=f"is in {dtype}"):
        eckart.plan(tmp_path / "net.onnx", 0.6, data=[x], dtype="float32")


def test_a_model_of_a_fixed_number_of_examples_is_called_several_times(
    saved: Path, batches: list[Any], tmp_path: Path
) -> None:
    made = net()
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    made.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(made, tmp_path / "four.onnx")
    four, any_number = OnnxNetwork(tmp_path / "four.onnx", batches[0]), OnnxNetwork(saved, batches[0])
    np.testing.assert_allclose(four.outputs(batches[0]), any_number.outputs(batches[0]), rtol=1e-5, atol=1e-5)
    seen: list[Any] = []
    four.read(batches[0], ["gemm"], lambda name, x: seen.append(x.shape))
    assert seen == [(16, 16)]
    with pytest.raises(InputError, match="cannot be called"):
        four.outputs(batches[0][:5])


def test_padding_that_follows_from_a_length_is_read_where_the_file_states_it(tmp_path: Path) -> None:
    weights = {"W": np.random.default_rng(0).standard_normal((8, 8, 4, 4)).astype(np.float32)}
    node = helper.make_node("Conv", ["x", "W"], ["y"], name="c", auto_pad="SAME_LOWER", strides=[2, 3])
    onnx.save(model([node], weights, {"x": ["n", 8, "h", 9]}), tmp_path / "free.onnx")
    x = np.ones((1, 8, 9, 9), np.float32)
    assert "SAME_LOWER" in OnnxNetwork(tmp_path / "free.onnx", x).layers()["c"].kept
    onnx.save(model([node], weights, {"x": ["n", 8, 9, 9]}), tmp_path / "stated.onnx")
    kernel = OnnxNetwork(tmp_path / "stated.onnx", x).layers()["c"].kernel
    assert kernel == Kernel(8, 8, (4, 4), (2, 3), ((2, 1), (1, 0)), (1, 1))


def test_constants_are_weights_and_quantised_ones_are_named(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    w = numpy_helper.from_array(draws.standard_normal((16, 16)).astype(np.float32))
    weights = {"q": draws.integers(-9, 9, (16, 16)).astype(np.int8), "scale": np.float32(0.1), "one": np.float32(1.0)}
    nodes = [
        helper.make_node("Constant", [], ["w"], value=w),
        helper.make_node("MatMul", ["x", "w"], ["m"], name="constant"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["d"]),
        helper.make_node("MatMul", ["m", "d"], ["n"], name="quantised"),
        helper.make_node("Add", ["n", "one"], ["y"], name="constant sum"),
    ]
    onnx.save(model(nodes, weights, {"x": ["n", 16]}), tmp_path / "net.onnx")
    x = draws.standard_normal((64, 16))
    made = eckart.compress(tmp_path / "net.onnx", 0.8, data=[x], out=tmp_path / "small.onnx")
    assert {layer.name: layer.kept for layer in made.plan.layers} == {
        "constant": "", "quantised": "its weight is quantised",
    }  # fmt: skip
    assert list(made.replaced) == ["constant"]
    assert "Constant" not in [node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node]


def test_what_is_large_has_a_file_of_its_own(
    saved: Path, batches: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = eckart.compress(saved, 0.6, data=batches)
    monkeypatch.setattr(_onnx_file, "LARGEST_INLINE", 1000)
    out = tmp_path / "small.onnx"
    eckart.compress(saved, 0.6, data=batches, out=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "small.onnx.data"]
    onnx.checker.check_model(out, full_check=True)
    np.testing.assert_allclose(session(out).run(None, {"x": batches[0]})[0], plain.outputs(batches[0]), atol=1e-4)
    again = OnnxNetwork(out, batches[0])
    np.testing.assert_array_equal(again.outputs(batches[0]), plain.outputs(batches[0]))
    (tmp_path / "small.onnx").unlink()
    with pytest.raises(OutputError, match="exists"):
        eckart.compress(saved, 0.6, data=batches, out=out)


def test_wrong_calls_say_what_to_do(saved: Path, batches: list[Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"saved as a \.onnx file"):
        eckart.compress(saved, 0.6, data=batches, out=tmp_path / "folder")
    with pytest.raises(InputError, match=r"x float32\[any, 3, 12, 12\]"):
        eckart.compress(saved, 0.6, data=[(batches[0], batches[0])])
    with pytest.raises(InputError, match="'z'"):
        eckart.compress(saved, 0.6, data=[{"z": batches[0]}])
    with pytest.raises(InputError, match="cannot be called"):
        eckart.compress(saved, 0.6, data=[batches[0][:, :2]])
    with pytest.raises(InputError, match="complex64"):
        eckart.compress(saved, 0.6, data=[batches[0].astype(np.complex64)])
    with pytest.raises(NumericalError, match="not finite"):
        eckart.compress(saved, 0.6, data=[batches[0] * np.nan])
    with pytest.raises(UsageError, match="npz"):
        eckart.compress(saved, 0.6, data="text.txt")
    with pytest.raises(UsageError, match="tokens= has no meaning for an ONNX file"):
        eckart.compress(saved, 0.6, data=batches, tokens=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra_the_error_says_what_to_install(package: str, saved: Path) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None; import numpy, eckart\n"
        "eckart.plan(sys.argv[1], 0.5, data=[numpy.ones((1, 3, 12, 12))])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(saved)], capture_output=True, text=True)
    assert f"MissingExtraError: opening an ONNX file needs the package '{package}'" in done.stderr
    assert 'pip install "eckart[onnx]"' in done.stderr


def test_a_torch_module_reads_the_same_files(tmp_path: Path) -> None:
    import torch

    x = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "named.npz", input=x)
    np.savez(tmp_path / "plain.npz", x)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 16))
    batches = [torch.tensor(x[:32]), torch.tensor(x[32:])]
    expected = eckart.plan(module, 0.5, data=batches).to_json()
    for name in ("x.npy", "named.npz", "plain.npz"):
        assert eckart.plan(module, 0.5, data=[tmp_path / name]).to_json() == expected


def test_a_layer_is_timed_alone_as_it_is_and_as_a_chain(saved: Path, batches: list[Any]) -> None:
    network = OnnxNetwork(saved, batches[0])
    assert network.timer()() > 0
    for name in ("stem", "gemm", "l"):
        kernel = network.layers()[name].kernel
        assert kernel is not None
        assert network.timer(name)() > 0
        assert network.timer(name, stages(kernel, "pair", (2,)))() > 0
    assert network.timed_as("stem") != network.timed_as("a") != network.timed_as("b")
    assert "onnxruntime" in network.machine()
