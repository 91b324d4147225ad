"""Models of Keras rebuilt layer by layer: with layers exchanged, or with taps at those that are listened to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from eckart._arrays import to_numpy
from eckart.errors import InputError, UsageError
from eckart.models._keras_layers import take_over_

__all__ = ["Switch", "Tap", "arrays_of", "called", "copied", "graph_of", "rebuilt", "weighted"]

BATCH = "a batch is one array, a tuple of all inputs, or a dict of them; leave labels out"

Instead = Callable[[str, Any], Sequence[Any] | None]


def graph_of(model: Any) -> Any:
    """Return a functional model of the same layers that is not compiled; UsageError: the model has a call of its own,
    or is not built.
    """
    functional = "rewrite it as a functional model: keras.Model(inputs, outputs) of the same layers"
    if isinstance(model, keras.Sequential) and not model.built:
        raise UsageError(
            f"{model.name} is not built, so it has no weights yet", fix="begin it with keras.Input, or call model.build"
        )
    try:
        sequential = isinstance(model, keras.Sequential)
        inputs, outputs = (model.inputs, model.outputs) if sequential else (model.input, model.output)
    except (AttributeError, ValueError) as error:
        raise UsageError(
            f"{type(model).__name__} is a subclassed model, whose graph Keras does not know", fix=functional
        ) from error
    view = keras.Model(inputs, outputs, name=model.name)
    if type(model).call not in (keras.Sequential.call, type(view).call):
        raise UsageError(
            f"{type(model).__name__} has a call of its own, which a saved file would not have", fix=functional
        )
    return view


def rebuilt(model: Any, instead: Instead) -> Any:
    """Return a model with the same graph and with weights of its own.

    instead: given the path of a layer, "inner/dense" of one in an inner model, and the layer, it returns what is called
    in its place, one after the other, or None for a copy of the layer. It is asked once of each layer, in the order of
    first calls. UsageError: see `graph_of`, or a layer cannot be made from its configuration, or weights are shared.
    """
    work = _Rebuilding(instead)
    made = work.model(model, "")
    for new, old in work.copies:
        take_over_(new, old)
    return made


class _Rebuilding:
    def __init__(self, instead: Instead) -> None:
        self.instead, self.copies = instead, list[tuple[Any, Any]]()
        self._made: dict[int, Sequence[Any]] = {}

    def model(self, model: Any, prefix: str) -> Any:
        view = graph_of(model)

        def layers_of(old: Any) -> Sequence[Any]:
            return self._layers(old, prefix + old.name)

        def call(layers: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            y = layers[0](*args, **kwargs)
            for layer in layers[1:]:
                y = layer(y)
            return y

        if isinstance(model, keras.Sequential):
            (first,) = view.inputs
            given = keras.Input(batch_shape=first.shape, dtype=first.dtype, name=first.name)
            return keras.Sequential([given, *(new for old in model.layers for new in layers_of(old))], name=model.name)
        return keras.models.clone_model(view, clone_function=layers_of, call_function=call)

    def _layers(self, old: Any, path: str) -> Sequence[Any]:
        if id(old) not in self._made:
            if isinstance(old, keras.Model):
                made: Sequence[Any] = [self.model(old, f"{path}/")]
            else:
                made = self.instead(path, old) or [self.copied(old)]
            self._made[id(old)] = made
        return self._made[id(old)]

    def copied(self, old: Any) -> Any:
        new = copied(old)
        if isinstance(old, keras.layers.Layer):
            self.copies.append((new, old))
        return new


def copied(old: Any) -> Any:
    """Return a layer or an operation with the configuration of another, its weights still unset."""
    if isinstance(old, keras.layers.Lambda):
        raise UsageError(
            f"{old.name} is a Lambda layer, which no file can hold without code",
            fix="call operations of keras.ops in the functional model, or write a layer class",
        )
    try:
        return type(old).from_config(old.get_config())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UsageError(
            f"{old.name}, a {type(old).__name__}, cannot be made again from its configuration: {error!s:.200}",
            fix="give its class a get_config() that from_config() takes",
        ) from error


class Switch:
    """What all taps of one graph do now: which layers stand in for theirs, and who is told what they read.

    visit: called with the path of a tap, its input and its output.
    """

    def __init__(self) -> None:
        self.instead: dict[str, Sequence[Any]] = {}
        self.visit: Callable[[str, Any, Any], None] | None = None


class Tap(keras.layers.Layer):  # type: ignore[misc]
    """A layer of a graph that is run and never saved: it does what its switch says.

    place: the path of the layer. read_shape: what it was built for. fixed: whether the model states the lengths of all
    its inputs.
    """

    def __init__(self, place: str, layer: Any, switch: Switch) -> None:
        super().__init__(name=layer.name, autocast=False)
        self.place, self.layer, self.switch, self.fixed = place, layer, switch, True
        self.read_shape: tuple[int | None, ...] = ()
        self.supports_masking = layer.supports_masking

    def build(self, shape: Any) -> None:
        self.read_shape = tuple(shape)
        self.layer.build(shape)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        y = inputs
        for layer in self.switch.instead.get(self.place, (self.layer,)):
            y = layer(y)
        if self.switch.visit is not None:
            self.switch.visit(self.place, inputs, y)
        return y

    def compute_output_shape(self, shape: Any) -> Any:
        self.fixed = self.fixed and None not in shape[1:]
        return self.layer.compute_output_shape(shape)


def arrays_of(batch: Any, wanted: int) -> Any:
    """Return a batch in NumPy, one array or several; InputError: they are not as many as the model reads."""
    if isinstance(batch, Mapping):
        arrays: Any = {name: to_numpy(value) for name, value in batch.items()}
    elif isinstance(batch, (tuple, list)):
        arrays = [to_numpy(value) for value in batch]
        arrays = arrays[0] if len(arrays) == 1 else arrays
    else:
        arrays = to_numpy(batch)
    count = len(arrays) if isinstance(arrays, (dict, list)) else 1
    if count != wanted:
        raise InputError(f"a batch of data= has {count} arrays and the model reads {wanted}", fix=BATCH)
    return arrays


def called(graph: Any, batch: Any) -> list[Any]:
    """Return the tensors that a model gives for a batch, whatever holds them; InputError: it cannot be called so."""
    arrays = arrays_of(batch, len(graph.inputs))
    try:
        with _untracked():
            return list(keras.tree.flatten(graph(arrays, training=False)))
    except (TypeError, ValueError) as error:
        raise InputError(f"{graph.name} cannot be called with a batch of data=: {error!s:.300}", fix=BATCH) from error


def _untracked() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which torch, where it is the backend, remembers nothing for gradients."""
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def weighted(layer: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Iterate over the names, inside a layer, and the shapes of its weights that multiply."""
    for variable in getattr(layer, "weights", ()):  # an operation has none
        if len(variable.shape) > 1:
            yield variable.path.split(f"{layer.name}/", 1)[-1], tuple(variable.shape)
