"""Whole models of Keras, compressed, saved and refused, on whichever backend this process has."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import eckart
from eckart.errors import EckartError, InputError, NumericalError, OutputError, UnsafeInputError, UsageError
from eckart.models._keras_layers import unwarned, values

L = keras.layers


def functional() -> Any:
    """Return a model with a residual, batch norms, an inner model, and a dense layer that is called twice."""
    x = keras.Input((8, 8, 3), name="image")
    y = L.Conv2D(16, 3, padding="same", activation="relu", name="stem")(x)
    z = L.Conv2D(16, 3, padding="same", name="body")(y)
    z = L.BatchNormalization(name="norm")(z)
    y = keras.ops.relu(L.Add()([y, z]))
    inner = keras.Sequential([keras.Input((8, 8, 16)), L.Conv2D(24, 3, strides=2, activation="relu", name="deep")])
    inner.name = "inner"
    y = L.GlobalAveragePooling2D()(inner(y))
    shared = L.Dense(24, activation="tanh", name="shared")
    y = L.Dense(10, name="head")(shared(shared(y)))
    return keras.Model(x, y, name="small")


@pytest.fixture(scope="module")
def small() -> Any:
    keras.utils.set_random_seed(0)
    model = functional()
    draws = np.random.default_rng(0)
    for variable in model.weights:
        noise = draws.standard_normal(variable.shape).astype(np.float32)
        if variable.name == "moving_variance":
            variable.assign(np.exp(noise / 4))
        elif len(variable.shape) == 1:
            variable.assign(noise / 4 + (variable.name == "gamma"))
        else:
            variable.assign(noise * np.sqrt(2 / np.prod(variable.shape[:-1])))
    return model


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    draws = np.random.default_rng(1)
    return [draws.standard_normal((16, 8, 8, 3)).astype(np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def made(small: Any, batches: list[Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp("made") / "out.keras"
    return eckart.compress(small, 0.6, data=batches, out=path), path


def test_a_functional_model_is_compressed_and_not_changed(small: Any, batches: list[Any], made: Any) -> None:
    network, path = made
    assert network.path == str(path)
    assert network.parameters == network.plan.parameters_after == network.model.count_params()
    assert network.parameters <= 0.6 * small.count_params() < 1.1 * network.parameters
    assert {"inner/deep", "shared"} & set(network.replaced)
    names = {layer.name for layer in network.model.layers}
    assert {layer.name for layer in small.layers} <= names
    for kept in set(network.layers()) - set(network.replaced):
        if "/" not in kept:
            for new, old in zip(network.model.get_layer(kept).weights, small.get_layer(kept).weights, strict=True):
                np.testing.assert_array_equal(values(new), values(old))
    truth = values(small(batches[0], training=False))
    apart = values(network.model(batches[0], training=False)) - truth
    assert np.linalg.norm(apart) < 0.5 * np.linalg.norm(truth)
    assert small.get_layer("stem").output.shape == (None, 8, 8, 16)  # it has one call still
    with unwarned():  # which on JAX takes the memory of its weights
        small.predict_on_batch(batches[0])
    np.testing.assert_allclose(values(network.model(batches[0], training=False)) - truth, apart, rtol=0, atol=1e-5)
    whole = eckart.compress(small, 1.0, data=batches)
    assert not whole.replaced
    np.testing.assert_allclose(values(whole.model(batches[0])), truth, rtol=1e-5, atol=1e-5)


def test_the_file_needs_nothing_but_keras(batches: list[Any], made: Any, tmp_path: Path) -> None:
    network, path = made
    np.save(tmp_path / "x.npy", batches[0])
    program = (
        "import sys, warnings; sys.modules['eckart'] = None; import keras, numpy as np\n"
        "model = keras.saving.load_model(sys.argv[1])\n"
        "y = model(np.load(sys.argv[2]), training=False)\n"
        "np.save(sys.argv[3], keras.ops.convert_to_numpy(y))"
    )
    arguments = map(str, (path, tmp_path / "x.npy", tmp_path / "y.npy"))
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=300)
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), values(network.model(batches[0], training=False)), rtol=1e-4, atol=1e-4
    )
    assert sorted(zipfile.ZipFile(path).namelist()) == ["config.json", "metadata.json", "model.weights.h5"]
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_compressed_as_the_model_in_it(batches: list[Any], made: Any) -> None:
    plan = eckart.plan(str(made[1]), 0.9, data=batches)
    assert plan.parameters_before == made[0].parameters
    assert plan.parameters_after <= 0.9 * plan.parameters_before


def test_a_model_keeps_a_share_of_its_time(batches: list[Any]) -> None:
    draws = np.random.default_rng(4)
    model = keras.Sequential([keras.Input((512,)), L.Dense(2048, activation="relu")])
    made = eckart.compress(model, 0.9, cost="ms", data=[draws.standard_normal((256, 512), np.float32)])
    assert keras.backend.backend() in made.plan.timing.machine
    assert set(made.measurement) == {"before_ms", "after_ms", "speedup"}


def test_a_sequential_model_stays_one(tmp_path: Path) -> None:
    draws = np.random.default_rng(2)
    model = keras.Sequential([keras.Input((16,)), L.Dense(32, activation="relu"), L.Dropout(0.5), L.Dense(4)])
    made = eckart.compress(model, 0.7, data=[draws.standard_normal((64, 16))], out=tmp_path / "out.keras")
    again = keras.saving.load_model(tmp_path / "out.keras")
    assert type(again) is keras.Sequential
    assert again.count_params() == made.parameters < model.count_params()


def test_inputs_come_in_order_or_by_name() -> None:
    a, b = keras.Input((16,), name="a"), keras.Input((16,), name="b")
    model = keras.Model([a, b], {"sum": L.Dense(16, name="dense")(a) + b, "b": b})
    draws = np.random.default_rng(3)
    x, y = draws.standard_normal((2, 64, 16)).astype(np.float32)
    for batch in ((x, y), {"a": x, "b": y}):
        assert "dense" in eckart.compress(model, 0.5, data=[batch]).replaced
    with pytest.raises(InputError, match="leave labels out"):
        eckart.plan(model, 0.5, data=[(x, y, y)])


def test_wrong_calls_say_what_to_do(small: Any, batches: list[Any], tmp_path: Path) -> None:
    class Subclassed(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = L.Dense(8)

        def call(self, x: Any) -> Any:
            return self.layer(x)

    class Called(keras.Model):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return super().call(x) + 1.0

    x = keras.Input((8,))
    rows = np.ones((4, 8), np.float32)
    for model in (Subclassed(), Called(x, L.Dense(8)(x))):
        with pytest.raises(UsageError, match="functional model"):
            eckart.compress(model, 0.5, data=[rows])
    with pytest.raises(UsageError, match="not built"):
        eckart.compress(keras.Sequential([L.Dense(8)]), 0.5, data=[rows])
    with pytest.raises(UsageError, match="Lambda"):
        eckart.compress(keras.Model(x, L.Lambda(lambda x: x)(L.Dense(8)(x))), 0.5, data=[rows])
    with pytest.raises(InputError, match="no convolution"):
        eckart.compress(keras.Model(x, L.Flatten()(x)), 0.5, data=[rows])
    with pytest.raises(InputError, match="cannot be called"):
        eckart.compress(small, 0.5, data=[rows])
    with pytest.raises(UsageError, match=r"\.keras"):
        eckart.compress(small, 0.6, data=batches, out=tmp_path / "out", correct=False)
    with pytest.raises(UsageError, match="keeps the types"):
        eckart.compress(small, 0.6, data=batches, out=tmp_path / "out.keras", dtype="float16", correct=False)
    (tmp_path / "there.keras").write_text("")
    with pytest.raises(OutputError):
        eckart.compress(small, 0.6, data=batches, out=tmp_path / "there.keras")
    dense = L.Dense(8)
    broken = keras.Model(x, dense(x))
    dense.weights[0].assign(np.full((8, 8), np.nan))
    with pytest.raises(NumericalError):
        eckart.compress(broken, 0.5, data=[rows])
    assert [file.name for file in tmp_path.iterdir()] == ["there.keras"]


def parts(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def changed(members: dict[str, bytes], change: Any) -> dict[str, bytes]:
    """Return members with the configuration of the last layer changed."""
    config = json.loads(members["config.json"])
    change(config["config"]["layers"][-1])
    return {**members, "config.json": json.dumps(config).encode()}


def test_files_that_mean_harm_are_refused(made: Any, tmp_path: Path) -> None:
    sound = parts(made[1])
    trace = tmp_path / "trace"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"

    def linked(build: Any) -> bytes:
        file = io.BytesIO(sound["model.weights.h5"])
        with h5py.File(file, "r+") as weights:
            build(weights)
        return file.getvalue()

    def external(weights: Any) -> None:
        weights["layers/away"] = h5py.ExternalLink("/etc/passwd", "/x")

    def raw(weights: Any) -> None:
        weights.create_dataset("away", (4,), "f4", external=[("/etc/passwd", 0, 16)])

    def huge(weights: Any) -> None:
        weights.create_dataset("huge", (1 << 40,), "f4", chunks=(1 << 20,))

    def lambda_(layer: Any) -> None:
        layer.update(class_name="Lambda", config={"name": "head", "function": {"class_name": "__lambda__", "config": {
            "value": [code, None, None]}}})  # fmt: skip

    def nested(layer: Any) -> None:
        layer["config"]["activation"] = {"class_name": "__lambda__", "config": {"value": code}}

    def other_module(layer: Any) -> None:
        layer.update(module="os", class_name="function", config="system", registered_name="system")

    def inside_keras(layer: Any) -> None:
        layer["config"]["activation"] = {
            "module": "keras.config", "class_name": "function", "config": "enable_unsafe_deserialization",
            "registered_name": "enable_unsafe_deserialization",
        }  # fmt: skip

    def registered(layer: Any) -> None:
        layer["registered_name"] = "theirs>Layer"

    def looked_up(layer: Any) -> None:
        layer.update(class_name="StringLookup", config={"name": "head", "vocabulary": "/etc/passwd"})

    files = {
        "lambda": changed(sound, lambda_),
        "nested": changed(sound, nested),
        "module": changed(sound, other_module),
        "keras": changed(sound, inside_keras),
        "registered": changed(sound, registered),
        "vocabulary": changed(sound, looked_up),
        "many units": changed(sound, lambda layer: layer["config"].update(units=10**9)),
        "saved model": changed(sound, lambda layer: layer.update(class_name="TFSMLayer")),
        "up": {**sound, "../evil": b""},
        "assets up": {**sound, "assets/../../evil": b""},
        "absolute": {**sound, "/evil": b""},
        "more": {**sound, "code.py": b""},
        "link": {**sound, "model.weights.h5": linked(external)},
        "raw": {**sound, "model.weights.h5": linked(raw)},
        "huge": {**sound, "model.weights.h5": linked(huge)},
    }
    for name, members in files.items():
        with pytest.raises(UnsafeInputError):
            eckart.plan(packed(tmp_path / f"{name}.keras", members), 0.5, data=[np.ones((1, 8, 8, 3))])
    bomb = packed(
        tmp_path / "bomb.keras", {**sound, "model.weights.h5": b"\0" * (1 << 26)}, method=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(UnsafeInputError):
        eckart.plan(bomb, 0.5, data=[np.ones((1, 8, 8, 3))])
    assert not trace.exists()


def test_files_that_are_broken_are_refused(made: Any, tmp_path: Path) -> None:
    sound, whole = parts(made[1]), made[1].read_bytes()
    path = tmp_path / "file.keras"
    broken: list[bytes] = [b"", b"PK\3\4 no archive", *(whole[: len(whole) * i // 8] for i in range(1, 8))]
    draws = np.random.default_rng(0)
    for _ in range(8):
        torn = bytearray(whole)
        for place in draws.integers(0, len(whole) // 8, 20):
            torn[place] = draws.integers(256)
        broken.append(bytes(torn))
    members: list[dict[str, bytes]] = [
        {name: data for name, data in sound.items() if name != "config.json"},
        {name: data for name, data in sound.items() if name != "model.weights.h5"},
        {**sound, "config.json": b"[1]"},
        {**sound, "config.json": b"{}"},
        {**sound, "config.json": b'{"a":' * 100_000},
        {**sound, "model.weights.h5": b"garbage"},
        {**sound, "model.weights.h5": sound["model.weights.h5"][:2000]},
        changed(sound, lambda layer: layer.update(class_name="NoSuchLayer")),
        changed(sound, lambda layer: layer["config"].update(units=11)),
        changed(sound, lambda layer: layer["config"].update(units=-1)),
    ]
    for data in [*broken, *(packed(tmp_path / "made", some).read_bytes() for some in members)]:
        path.write_bytes(data)
        with pytest.raises((InputError, UnsafeInputError)):
            eckart.plan(path, 0.5, data=[np.ones((1, 8, 8, 3))])
    with pytest.raises(EckartError, match="no file"):
        eckart.plan(tmp_path / "none.keras", 0.5, data=[np.ones((1, 8, 8, 3))])
