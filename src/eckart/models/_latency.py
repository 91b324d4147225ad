"""How long a model and its layers take on this machine, in every form that a layer could have: measured, and kept.

What is compared takes turns in random order, with weights that come from memory as they do in a model; of many calls a
low percentile counts, since other work on the machine only ever adds time; and it takes two readings that agree. Where
ECKART_CACHE names a folder the times stay there, under the processor, threads, versions and dtype that they hold for.
On a GPU every call is waited for; that has not been verified on one.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from eckart.errors import UsageError
from eckart.models._factored_layers import PivotingFactorization
from eckart.models._huggingface import HuggingFaceModel
from eckart.models._layers import layer_type
from eckart.models._model import Layer, Progress
from eckart.models._option import Option, group_sizes, largest_useful_rank
from eckart.models._speed import PROMPT, SpeedSettings, now, seconds
from eckart.models._table import tied_head
from eckart.models._timings import RANK_TILE, Shape, Store, Timings
from eckart.models._turns import AGREEMENT, READINGS, agreed

__all__ = ["Latency", "measured_latency"]

GRID = 12  # ranks timed of a format, at most; between them time is linear
POOL_BYTES = 256 << 20  # that weights are taken from in turn; of 100 MB some stays in a cache, 600 MB change nothing
PASSES = 8  # of the model in a reading
LEAST_GAIN = 0.05  # of a layer's time; less is none


def _shape(layer: Layer) -> Shape:
    return Shape("Linear" if layer.table else layer.type, layer.rows, layer.columns, layer.bias)


@dataclass(frozen=True)
class Latency:
    """What time a layer takes in each phase of a workload.

    whole: milliseconds of the dense model, by phase: "prefill" is a pass over `tokens` tokens, "decode" one more token.
    calls: by phase and layer, with how many rows it is called.
    """

    whole: Mapping[str, float]
    tokens: int
    calls: Mapping[str, Mapping[str, Sequence[int]]]
    timings: Timings
    machine: str

    def saved(self, layer: Layer, option: Option) -> dict[str, float]:
        """Return by phase how many milliseconds less than when it is dense the layer takes as `option`."""
        return {phase: self._dense(layer, phase) - self._ms(layer, option, phase) for phase in self.whole}

    def price(self, layer: Layer, option: Option) -> float:
        """Return the layer's part of the dense model's time, every phase counting alike; a gain below 5 % is none."""
        dense = sum(self._dense(layer, phase) / ms for phase, ms in self.whole.items()) / len(self.whole)
        if option.format == "dense":
            return dense
        price = sum(self._ms(layer, option, phase) / ms for phase, ms in self.whole.items()) / len(self.whole)
        return price if price <= (1 - LEAST_GAIN) * dense else max(price, dense)

    def _dense(self, layer: Layer, phase: str) -> float:
        return sum(self.timings.ms(_shape(layer).called("dense", t)) for t in self.calls[phase].get(layer.name, ()))

    def _ms(self, layer: Layer, option: Option, phase: str) -> float:
        if option.format == "dense":
            return self._dense(layer, phase)
        calls = self.calls[phase].get(layer.name, ())
        if layer.table:  # its groups one after the other; what putting them in order takes is not counted
            groups = [
                (size, "dense", 0) if k == layer.columns else (size, "pair", k)
                for size, k in zip(group_sizes(layer.rows), option.ranks, strict=True)
            ]
            return sum(
                self.timings.ms(_shape(replace(layer, rows=size)).called(form, t), k)
                for t in calls
                for size, form, k in groups
            )
        return sum(self.timings.ms(_shape(layer).called(_timed_as(option.format), t), option.ranks[0]) for t in calls)


def measured_latency(
    model: HuggingFaceModel, formats: Mapping[str, Sequence[str]], phases: Sequence[str], progress: Progress
) -> Latency:
    """Return the times of a dense model and of its layers in these formats; what is not known yet is measured.

    phases: "prefill", "decode" or both; of a model that generates nothing, decode is left out. UsageError: nothing is
    left then, or the model is an encoder-decoder.
    """
    if model.module.config.is_encoder_decoder:
        raise UsageError(f"{model.name} is an encoder-decoder, which is not timed", fix="cost='params' or 'bytes'")
    phases = [phase for phase in phases if phase == "prefill" or model.predicts_next_token]
    if not phases:
        raise UsageError(f"{model.name} generates no text, so it has no decode", fix="workload='prefill'")
    tokens = min(SpeedSettings().prefill_tokens, model.context)
    store = Store(next(model.module.parameters()))
    calls = {phase: _calls(model, formats, tokens if phase == "prefill" else 1) for phase in phases}
    _time_model(model, formats, phases, tokens, store, progress)
    rows = {name: {t for some in calls.values() for t in some.get(name, ())} for name in formats}
    _time_layers(model, formats, rows, store, progress)
    whole = store.timings.models[_shapes(model)]
    return Latency(
        {phase: whole[phase] for phase in phases}, tokens, calls, store.timings, "; ".join(store.machine.values())
    )


def _timed_as(form: str) -> str:
    """Return the format with the same products of matrices: a factor that several layers store once is used by each."""
    return "pair" if form == "shared" else form


def _shapes(model: HuggingFaceModel) -> str:
    """Return a hash of what a model's time depends on: its class, configuration and the shapes of its tensors."""
    shapes = [(name, list(tensor.shape)) for name, tensor in model.tensors()]
    config = {name: value for name, value in model.module.config.to_dict().items() if name != "_name_or_path"}
    text = json.dumps([type(model.module).__name__, shapes, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _places(model: HuggingFaceModel, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return with each layer the module that multiplies by its matrix: of a table the head tied to it, if any."""
    layers, head = model.layers(), tied_head(model.module)
    return [(name, head if layers[name].looked_up else name) for name in names if head or not layers[name].looked_up]


@torch.no_grad()
def _calls(model: HuggingFaceModel, names: Iterable[str], tokens: int) -> dict[str, list[int]]:
    """Return with how many rows each layer is called in a pass over so many tokens; a table, where its head multiplies.

    A number between one and all of the tokens, as experts see them, counts as the nearer of the two.
    """
    seen: dict[str, list[int]] = {}
    handles = []
    for name, place in _places(model, names):

        def note(module: nn.Module, args: Any, output: torch.Tensor, name: str = name) -> None:
            rows = output.numel() // max(1, output.shape[-1])
            if rows:
                seen.setdefault(name, []).append(1 if rows * rows < tokens else tokens)

        handles.append(model.module.get_submodule(place).register_forward_hook(note))
    last = {"logits_to_keep": 1} if model.predicts_next_token else {}
    try:
        model.module(torch.zeros(1, tokens, dtype=torch.long, device=model.module.device), **last)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _time_model(
    model: HuggingFaceModel,
    names: Iterable[str],
    phases: Sequence[str],
    tokens: int,
    store: Store,
    progress: Progress,
) -> None:
    known = store.timings.models.setdefault(_shapes(model), {})
    places = [place for _, place in _places(model, names)]
    for phase in phases:
        if phase not in known:
            known[phase] = 1000 * _time_phase(model, places, phase, tokens, partial(progress, f"timing {phase}"))
            store.write()


@torch.no_grad()
def _time_phase(
    model: HuggingFaceModel, names: Sequence[str], phase: str, tokens: int, progress: Callable[[int, int], None]
) -> float:
    """Return how long a pass takes: the sum over the calls of these layers and what is between them, of each the least.

    On a busy machine no pass as a whole is left alone, but each of its parts is in some.
    """
    module, marks = model.module, list[float]()
    prompt = max(1, min(PROMPT, model.context - PASSES - 1))
    ids = torch.arange(max(tokens, prompt), device=module.device)[None] % module.get_input_embeddings().num_embeddings
    more: dict[str, Any] = {"logits_to_keep": 1} if model.predicts_next_token else {}

    def run() -> np.ndarray[Any, np.dtype[np.float64]]:
        marks[:] = [now()]
        module(ids[:, :1] if phase == "decode" else ids[:, :tokens], **more)
        return np.diff([*marks, now()])

    def mark(*_: Any) -> None:
        marks.append(now())

    layers = [module.get_submodule(name) for name in names]
    handles = [listen(mark) for m in layers for listen in (m.register_forward_pre_hook, m.register_forward_hook)]
    try:
        readings: list[float] = []
        for reading in range(READINGS):
            progress(reading, READINGS)
            if phase == "decode":
                more = {"past_key_values": module(ids[:, :prompt], use_cache=True).past_key_values, "use_cache": True}
            parts = [run() for _ in range(PASSES)]
            readings = sorted([*readings, float(np.min(parts, axis=0).sum())])
            if len(readings) > 1 and readings[1] <= (1 + AGREEMENT) * readings[0]:
                break
    finally:
        for handle in handles:
            handle.remove()
    progress(READINGS, READINGS)
    return readings[1]


def _time_layers(
    model: HuggingFaceModel,
    formats: Mapping[str, Sequence[str]],
    rows: Mapping[str, set[int]],
    store: Store,
    progress: Progress,
) -> None:
    """Measure what the table lacks of these layers, each distinct shape once. rows: of the calls of each layer."""
    layers = model.layers()
    wanted: dict[tuple[Shape, int], dict[str, nn.Module]] = {}  # by format, a layer of that shape
    for name, forms in formats.items():
        for t in rows.get(name, ()):
            if layers[name].table:
                for n in (layers[name].rows, *group_sizes(layers[name].rows)):
                    like = nn.Linear(layers[name].columns, n, bias=False, device="meta", dtype=model.module.dtype)
                    parts = ("dense",) if n == layers[name].rows else ("dense", "pair")
                    some = wanted.setdefault((_shape(replace(layers[name], rows=n)), t), {})
                    some.update(dict.fromkeys(parts, like))
            else:
                same = dict.fromkeys(("dense", *map(_timed_as, forms)), model.module.get_submodule(name))
                wanted.setdefault((_shape(layers[name]), t), {}).update(same)
    known = store.timings.points
    todo = {key: some for key, some in wanted.items() if any(key[0].called(form, key[1]) not in known for form in some)}
    if not todo:
        return
    pool = _Pool(next(model.module.parameters()), max(shape.rows * shape.columns for shape, _ in todo))
    for i, ((shape, t), some) in enumerate(todo.items()):
        progress("timing layers", i, len(todo))
        with torch.no_grad():
            found = agreed(_alternatives(shape, t, some, pool))
        for form in some:
            known[shape.called(form, t)] = _rising({k: 1000 * s for (f, k), s in found.items() if f == form})
        store.write()
    progress("timing layers", len(todo), len(todo))


def _rising(times: Mapping[int, float]) -> dict[int, float]:
    """Return the times with none above that of a higher rank, which does more work: what is was disturbed."""
    ranks = sorted(times)
    lowest = np.minimum.accumulate([times[k] for k in reversed(ranks)])[::-1]
    return {k: float(ms) for k, ms in zip(ranks, lowest, strict=True)}


class _Pool:
    """Numbers that weights are taken from, each time others, so that they are in no cache when they are used."""

    def __init__(self, like: torch.Tensor, largest: int) -> None:
        few = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)).to(like)
        count = max(POOL_BYTES // few.element_size(), 2 * largest)
        self.numbers, self.place = few.repeat(-(-count // few.numel())), 0

    def take(self, shape: torch.Size) -> torch.Tensor:
        count = shape.numel()
        if self.place + count > len(self.numbers):
            self.place = 0
        view = self.numbers[self.place : self.place + count].view(shape)
        self.place += -(-count // 64) * 64
        return view


def _alternatives(
    shape: Shape, tokens: int, forms: Mapping[str, nn.Module], pool: _Pool
) -> dict[tuple[str, int], Callable[[], float]]:
    """Return for each format, of a layer like the one given, and rank of the grid what times one call, in seconds."""
    x = pool.take(torch.Size((1, tokens, shape.columns))).clone()
    return {
        (form, k): _call(_module(like, form, k, pool.numbers.device), x, pool)
        for form, like in forms.items()
        for k in _grid(form, shape.rows, shape.columns)
    }


def _grid(form: str, rows: int, columns: int) -> list[int]:
    """Return the ranks that are timed: multiples of the tile up to where nothing is saved, a few of them if many."""
    if form == "dense":
        return [0]
    last, most = largest_useful_rank(form, rows, columns), min(rows, columns)
    tiles = np.unique(np.linspace(1, max(1, -(-last // RANK_TILE)), GRID).round().astype(int))
    return sorted({min(int(tile) * RANK_TILE, most) for tile in tiles})


def _module(like: nn.Module, form: str, k: int, device: Any) -> nn.Module:
    """Return a layer like this one, dense or factored, whose weights are still to be taken from the pool."""
    if form == "dense":
        return copy.deepcopy(like, {id(tensor): tensor for tensor in (*like.parameters(), *like.buffers())}).eval()
    kind = layer_type(like)
    assert kind is not None
    made = kind.factored(like, kind.options(like, "float32", {form: [k]})[1], None, device)
    if isinstance(made, PivotingFactorization) and made.order is not None:
        made.order = torch.randperm(made.out_features, generator=torch.Generator().manual_seed(0)).to(made.order)
    return made.eval()


def _call(module: nn.Module, x: torch.Tensor, pool: _Pool) -> Callable[[], float]:
    owned = [(m, leaf, p.shape) for m in module.modules() for leaf, p in m._parameters.items() if p is not None]

    def call() -> float:
        for owner, leaf, shape in owned:
            owner._parameters[leaf] = pool.take(shape)  # type: ignore[assignment]
        return seconds(lambda: module(x))

    return call
