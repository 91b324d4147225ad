"""ONNX files and arrays from strangers: refused with an error that says why, and never followed out of their folder."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import eckart
from eckart.errors import EckartError, InputError, NumericalError, UnsafeInputError
from eckart.models._onnx_network import OnnxNetwork

X = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)


def net() -> onnx.ModelProto:
    """Return a valid model of two matrices of 16 x 16."""
    draws = np.random.default_rng(0)
    weights = [numpy_helper.from_array(draws.standard_normal((16, 16)).astype(np.float32), name) for name in "vw"]
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="second"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16]) for name in "xy"]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def apart(made: onnx.ModelProto, location: str, *, offset: int = 0, length: int | None = None) -> onnx.ModelProto:
    """Return a model that says its first weight is elsewhere."""
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return made


def refused(made: onnx.ModelProto | bytes, folder: Path, kind: type[EckartError], match: str) -> None:
    """Fail unless compressing the model is refused so, and nothing is left behind."""
    path = folder / "model.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    before = sorted(folder.iterdir())
    with pytest.raises(kind, match=match):
        eckart.compress(path, 0.5, data=[X], out=folder / "out.onnx")
    assert sorted(folder.iterdir()) == before


def test_the_model_itself_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(b"\0" * 8 + numpy_helper.to_array(net().graph.initializer[0]).tobytes())
    for made in (net(), apart(net(), "w.data", offset=8), apart(net(), "./w.data", offset=8, length=1024)):
        onnx.save(made, tmp_path / "model.onnx")
        np.testing.assert_array_equal(OnnxNetwork(tmp_path / "model.onnx", X).outputs(X).shape, X.shape)
        first = OnnxNetwork(tmp_path / "model.onnx", X).weight("first")[0]
        np.testing.assert_array_equal(first.T, numpy_helper.to_array(net().graph.initializer[0]))


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret", "C:\\secret", "link", "", "a\0b"])
def test_data_outside_of_the_folder_is_not_read(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"\0" * 4096)
    (folder / "link").symlink_to(tmp_path / "secret")
    refused(apart(net(), location), folder, UnsafeInputError, "outside")


def test_data_outside_of_the_folder_is_not_read_in_a_branch_either(tmp_path: Path) -> None:
    inner = apart(net(), "../secret").graph
    branch = helper.make_graph(
        [helper.make_node("Identity", ["v"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [16, 16])],
        list(inner.initializer)[:1],
    )
    made = net()
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    made.graph.node.append(helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch))
    refused(made, tmp_path, UnsafeInputError, "outside")


def test_data_that_is_not_there_or_too_short_or_too_long_is_named(tmp_path: Path) -> None:
    refused(apart(net(), "none.data"), tmp_path, InputError, "there is no file .*none.data")
    (tmp_path / "w.data").write_bytes(b"\0" * 1000)
    refused(apart(net(), "w.data"), tmp_path, InputError, "v ends at byte 1,024")
    refused(apart(net(), "w.data", offset=-4), tmp_path, InputError, "from -4 on")
    refused(apart(net(), "w.data", length=4), tmp_path, InputError, "said to be 4")
    refused(apart(net(), "w.data", length="many"), tmp_path, InputError, "many")  # type: ignore[arg-type]
    os.mkfifo(tmp_path / "pipe")
    refused(apart(net(), "pipe"), tmp_path, InputError, "not a regular file")


def test_many_names_for_overlapping_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(b"\0" * 2048)
    made = apart(net(), "w.data")
    for i in range(1, 100):
        tensor = made.graph.initializer.add()
        tensor.CopyFrom(made.graph.initializer[0])
        tensor.name = f"v{i}"
        next(entry for entry in tensor.external_data if entry.key == "offset").value = str(i)
    refused(made, tmp_path, InputError, "overlap")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    whole = net().SerializeToString()
    refused(b"", tmp_path, InputError, "not a valid ONNX model")
    refused(b"\x80\x04garbage" * 100, tmp_path, InputError, "not a valid ONNX model")
    refused(pickle.dumps({"a": 1}), tmp_path, InputError, "not a valid ONNX model")
    for cut in range(1, len(whole) - 1, 97):
        refused(whole[:cut], tmp_path, InputError, "not a valid ONNX model")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        eckart.compress(tmp_path / "folder.onnx", 0.5, data=[X])
    with pytest.raises(InputError, match="there is no file"):
        eckart.compress(tmp_path / "none.onnx", 0.5, data=[X])


def _cyclic(made: onnx.ModelProto) -> None:
    made.graph.node[0].input[0] = "y"


def _unknown_operator(made: onnx.ModelProto) -> None:
    made.graph.node[0].op_type = "Evil"


def _same_name(made: onnx.ModelProto) -> None:
    made.graph.initializer[1].name = "v"


def _another_shape(made: onnx.ModelProto) -> None:
    made.graph.initializer[0].dims[:] = [16, 17]


def _immense(made: onnx.ModelProto) -> None:
    made.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]


def _negative(made: onnx.ModelProto) -> None:
    made.graph.initializer[0].dims[:] = [-1, 16]


def _no_opset(made: onnx.ModelProto) -> None:
    del made.opset_import[:]


def _from_the_future(made: onnx.ModelProto) -> None:
    made.ir_version = 1000


@pytest.mark.parametrize(
    "spoil",
    [_cyclic, _unknown_operator, _same_name, _another_shape, _immense, _negative, _no_opset, _from_the_future],
)
def test_a_broken_model_is_refused(spoil: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    made = net()
    spoil(made)
    refused(made, tmp_path, InputError, "not a valid ONNX model")


@pytest.mark.parametrize(
    "wrong",
    [
        {"strides": [1]}, {"pads": [1, 1, 1]}, {"group": 0}, {"group": 3}, {"strides": [0, 1]}, {"dilations": [1, -1]},
        {"kernel_shape": [1, 2]}, {"output_padding": [1]},
    ],
)  # fmt: skip
def test_attributes_that_do_not_fit_the_weight_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    made = net()
    made.graph.initializer[0].dims[:] = [8, 8, 2, 2]
    made.graph.node[0].CopyFrom(helper.make_node("ConvTranspose", ["x", "v"], ["h"], name="first", **wrong))
    refused(made, tmp_path, InputError, "do not fit its weight")


def test_code_of_others_is_not_loaded(tmp_path: Path) -> None:
    made = net()
    made.graph.node[0].domain, made.graph.node[0].op_type = "some.domain", "Evil"
    made.opset_import.append(helper.make_opsetid("some.domain", 1))
    refused(made, tmp_path, InputError, "onnxruntime does not run")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(value: float, tmp_path: Path) -> None:
    made, w = net(), numpy_helper.to_array(net().graph.initializer[1]).copy()
    w[3, 4] = value
    made.graph.initializer[1].CopyFrom(numpy_helper.from_array(w, "w"))
    refused(made, tmp_path, NumericalError, "w, of the layer second")


def test_no_change_of_a_few_bytes_raises_anything_else(tmp_path: Path) -> None:
    whole, draws, opened = net().SerializeToString(), np.random.default_rng(0), 0
    head = [
        i
        for i in range(len(whole))
        if not any(32 <= i - whole.find(t.raw_data) < 1000 for t in net().graph.initializer)
    ]
    for _ in range(300):
        data = bytearray(whole)
        for i in draws.choice(head, draws.integers(1, 4)):
            data[i] = draws.integers(256)
        (tmp_path / "model.onnx").write_bytes(data)
        try:
            OnnxNetwork(tmp_path / "model.onnx", X).outputs(X)
            opened += 1
        except EckartError:
            pass
    assert 0 < opened < 300


class Trap:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (7,)


def _pickled_array(path: Path) -> None:
    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)


def _pickled_member(path: Path) -> None:
    np.savez(path, x=np.array([Trap()], dtype=object), allow_pickle=True)


def _bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


def _pickle_in_a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Trap()))


def _script_in_a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.py", "import os")


def _bomb(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros((1 << 22, 16), np.float32))


def _immense_shape(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 45, 16)})


def _truncated(path: Path) -> None:
    np.savez(path, x=X)
    path.write_bytes(path.read_bytes()[:-300])


def _truncated_array(path: Path) -> None:
    np.save(path, X)
    path.write_bytes(path.read_bytes()[:-1])


def _of_two_lengths(path: Path) -> None:
    np.savez(path, x=X, z=X[1:])


def _scalar(path: Path) -> None:
    np.save(path, np.float32(3))


def _empty(path: Path) -> None:
    np.save(path, X[:0])


@pytest.mark.parametrize(
    ("name", "write", "why"),
    [
        ("x.npy", _pickled_array, "no pickles"), ("x.npz", _pickled_member, "no pickles"),
        ("x.npy", _bare_pickle, "holds no arrays"), ("x.npz", _bare_pickle, "holds no arrays"),
        ("x.npz", _pickle_in_a_zip, "holds no arrays"), ("x.npz", _script_in_a_zip, "x.py"),
        ("x.npz", _bomb, "was not unpacked"), ("x.npz", _immense_shape, "bytes, and there are"),
        ("x.npz", _truncated, "holds no arrays"), ("x.npy", _truncated_array, "cut short"),
        ("x.npz", _of_two_lengths, "63, 64 examples"), ("x.npy", _scalar, "of 0 examples"),
        ("x.npy", _empty, "of 0 examples"), ("none.npy", lambda path: None, "there is no file"),
        ("x.npy", Path.mkdir, "is a folder"),
    ],
)  # fmt: skip
def test_arrays_that_are_none_are_refused(name: str, write: Callable[[Path], None], why: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(net().SerializeToString())
    write(tmp_path / name)
    with pytest.raises(InputError, match=why):
        eckart.compress(tmp_path / "model.onnx", 0.5, data=tmp_path / name)
