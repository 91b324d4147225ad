"""Layers of Keras as kernels, on whichever backend this process has: run by tests/models/test_keras.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from eckart._compress._kernels import Grams, factored
from eckart.models._keras_layers import values
from eckart.models._keras_network import KerasNetwork
from eckart.models._kernel import Kernel, largest_ranks, patches, useful_forms

L = keras.layers
FIRST = [] if keras.backend.backend() == "tensorflow" else ["channels_first"]  # which TensorFlow lacks on the CPU

# a list and not Hypothesis: JAX and TensorFlow compile anew for each shape
CASES: list[tuple[Any, tuple[int, ...]]] = [
    (L.Dense(5), (6,)),
    (L.Dense(5, activation="relu", use_bias=False), (3, 6)),
    (L.Conv1D(5, 3, strides=2, padding="same", activation="tanh"), (9, 4)),
    (L.Conv1D(5, 4, dilation_rate=2, padding="causal"), (11, 4)),
    (L.Conv1D(5, 3, strides=2, padding="causal"), (10, 4)),
    (L.Conv2D(6, (3, 2), padding="same"), (5, 6, 4)),
    (L.Conv2D(6, 3, strides=(2, 1), padding="same"), (8, 7, 4)),
    (L.Conv2D(6, (4, 3), strides=2, padding="same", use_bias=False), (7, 8, 4)),
    (L.Conv2D(6, 3, strides=3, activation="gelu"), (8, 9, 4)),
    (L.Conv2D(6, 3, dilation_rate=(2, 1), padding="same"), (7, 5, 4)),
    (L.Conv2D(6, 3, groups=2, padding="same"), (5, 5, 4)),
    (L.Conv2D(6, 1), (4, 4, 5)),
    (L.Conv3D(5, (2, 3, 2), strides=(1, 2, 1), padding="same"), (3, 4, 4, 4)),
    (L.Conv1DTranspose(5, 4, strides=2, padding="same"), (5, 4)),
    (L.Conv1DTranspose(5, 3, dilation_rate=2), (5, 4)),
    (L.Conv2DTranspose(5, 3, strides=2, padding="same"), (4, 5, 4)),
    (L.Conv2DTranspose(5, (3, 2), strides=(2, 3)), (4, 3, 4)),
    (L.Conv2DTranspose(5, 3, strides=2, padding="same", output_padding=1), (4, 4, 4)),
    (L.Conv3DTranspose(5, 2, strides=2, padding="same"), (2, 3, 2, 4)),
]
CASES += [
    (layer, shape)
    for order in FIRST
    for layer, shape in [
        (L.Conv2D(6, 3, strides=2, padding="same", data_format=order), (4, 8, 7)),
        (L.Conv2DTranspose(5, 3, strides=2, padding="same", data_format=order), (4, 4, 5)),
    ]
]
if keras.backend.backend() == "jax":  # which compiles every operation, a case for five seconds
    CASES = CASES[::2]


def full(kernel: Kernel, form: str) -> tuple[int, ...]:
    """Return the ranks at which a form is the layer."""
    most = largest_ranks(kernel, form)
    return most if form != "tucker" else (most[0], min(most[1], kernel.columns))


@pytest.mark.parametrize(("layer", "shape"), CASES, ids=[f"{c.name}-{i}" for i, (c, _) in enumerate(CASES)])
def test_a_kernel_reads_what_the_layer_reads_and_a_full_chain_is_the_layer(
    layer: Any, shape: tuple[int, ...], tmp_path: Path
) -> None:
    keras.utils.set_random_seed(0)
    draws = np.random.default_rng(0)
    model = keras.Sequential([keras.Input(shape), layer])
    for variable in model.weights:
        variable.assign(draws.standard_normal(variable.shape))
    x = draws.standard_normal((2, *shape)).astype(np.float32)
    network = KerasNetwork(model, x)
    (name,) = network.layers()
    kernel = network.layers()[name].kernel
    assert kernel is not None
    assert kernel.numbers == model.count_params()
    weight, bias = network.weight(name)
    read: list[Any] = []
    network.read(x, [name], lambda name, array: read.append(patches(array, kernel, 10**9, np.random.default_rng(0))))
    each = weight.reshape(kernel.groups, -1, kernel.columns)
    found = np.einsum("tgn,gmn->tgm", read[0], each).reshape(len(read[0]), kernel.out)
    activation = keras.activations.get(layer.activation)
    found = values(activation(keras.ops.convert_to_tensor(found + (0.0 if bias is None else bias))))
    truth = values(model(x))
    channels_first = getattr(layer, "data_format", "") == "channels_first"
    rows = (np.moveaxis(truth, 1, -1) if channels_first else truth).reshape(-1, kernel.out)
    scale = float(np.abs(weight).sum()) * np.finfo(np.float32).eps
    np.testing.assert_allclose(found, rows, rtol=1e-5, atol=8 * scale)
    for form in useful_forms(kernel):
        ranks = full(kernel, form)
        weights = factored(kernel, weight, Grams([None] * kernel.groups, None), (form, ranks))
        small = network.copy()
        small.replace_(name, form, ranks, weights, bias)
        expected = truth.reshape(2, -1)
        np.testing.assert_allclose(small.outputs(x), expected, rtol=1e-4, atol=64 * scale, err_msg=form)
        plain = values(small.model(x)).reshape(2, -1)
        np.testing.assert_array_equal(plain, small.outputs(x))
        assert small.parameters == small.model.count_params()
    np.testing.assert_array_equal(network.outputs(x), truth.reshape(2, -1))


def test_what_stays_dense_says_why() -> None:
    x = keras.Input((None, None, 4), name="x")
    y = L.Conv2D(8, 3, strides=2, padding="same", name="open")(x)
    y = L.Conv2D(8, 3, padding="same", name="free")(y)
    y = L.DepthwiseConv2D(1, name="depthwise")(y)
    y = L.SeparableConv2D(8, 1, name="separable")(y)
    y = L.Conv2D(8, 1, groups=8, name="alone")(y)
    y = L.GlobalAveragePooling2D()(y)
    y = L.Dense(8, kernel_constraint="non_neg", name="constrained")(y)
    adapted = L.Dense(8, name="adapted")
    y = adapted(y)
    adapted.enable_lora(2)
    kept = {
        name: layer.kept
        for name, layer in KerasNetwork(
            keras.Model(x, y), np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)
        ).layers().items()
    }  # fmt: skip
    assert "leaves open" in kept["open"]
    assert kept["free"] == ""
    assert "depthwise" in kept["alone"]
    assert "constraint" in kept["constrained"]
    assert "LoRA" in kept["adapted"]
    others = {name: why for name, why in kept.items() if "/" in name}
    assert set(others.values()) == {"DepthwiseConv2D layers are kept", "SeparableConv2D layers are kept"}
