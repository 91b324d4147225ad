"""Compression of a network of kernels: convolutions and matrices in any framework, calibrated on what it is given.

The metric of a kernel is that of its patches and, where the framework has gradients, of those of random sums of the
outputs. What a form of a kernel is predicted to lose is its squared error in that metric, in the unit of the outputs:
the factor between the two is measured for each layer at one rank, by running the network with that layer replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from array_api_compat import array_namespace

from eckart._arrays import Array
from eckart._compress._allocate import Choices, least_loss
from eckart._compress._kernels import Form, Grams, factored, forms_on_offer, losses_of, numbers
from eckart._compress._methods import INPUT_SHRINKAGE
from eckart._compress._observe import drift, gram_bytes, observed, pulled
from eckart._compress._plan import SQUARES, LayerPlan, Plan, Timing
from eckart._compress._ranks import budget_of, selected, smallest
from eckart._compress._target import Target
from eckart.errors import UsageError
from eckart.models._kernel import Kernel, multiplied, stages
from eckart.models._model import Layer, Progress
from eckart.models._network import Batch, Network
from eckart.models._network_times import Times, measured_times
from eckart.models._option import Option, of_stages

__all__ = ["compressed", "planned"]

_N = TypeVar("_N", bound=Network)

PROBES = 64  # examples that a change of the outputs is measured on
GRAM_BYTES = 1 << 30  # of Grams that are in memory at once


def planned(
    network: Network,
    batches: Sequence[Batch],
    target: Target,
    *,
    layers: str | Sequence[str],
    dtype: str,
    seed: int,
    progress: Progress,
) -> Plan:
    """Return what every layer becomes such that the outputs change least within the target.

    Only the Grams of some layers, GRAM_BYTES together, are in memory at once, so that a network of many kernels is run
    several times.
    """
    found = network.layers()
    reasons = selected(found, layers, tables=False)
    names = [name for name, reason in reasons.items() if not reason]
    kernels = {name: _kernel(found[name]) for name in names}
    forms = {name: forms_on_offer(kernel) for name, kernel in kernels.items()}
    truth = _outputs(network, batches)
    lost: dict[str, dict[Form, float]] = {}
    for some in _together(kernels):
        seen = observed(network, batches, some, seed)
        for name, kernel in some.items():
            progress("measuring layers", len(lost), len(names))
            grams = seen.pop(name).grams()
            weight, _ = network.weight(name)
            known = losses_of(kernel, weight, grams, forms[name])
            lost[name] = {}
            if (trial := _middle(kernel, forms[name])) is not None:
                change = _changed_by(network, batches, truth, name, trial, grams)
                scale = change / known[trial] if known[trial] > 0 else 0.0
                lost[name] = {form: scale * value for form, value in known.items()}
    progress("measuring layers", len(names), len(names))
    offers = {
        name: [_dense(kernel, dtype), *(of_stages(*form, dtype, stages(kernel, *form)) for form in forms[name])]
        for name, kernel in kernels.items()
    }
    losses = {name: np.array([0.0, *(lost[name][form] for form in forms[name])]) for name in names}
    times = None
    if target.cost == "ms":
        times = measured_times(network, kernels, forms, progress)
    chosen = _chosen(network, offers, losses, target, dtype, times)
    made = tuple(
        _layer_plan(layer, reasons[name], chosen.get(name), lost.get(name, {}), dtype, times)
        for name, layer in found.items()
    )
    params, size = (
        sum(getattr(offers[name][0], unit) - getattr(option, unit) for name, option in chosen.items())
        for unit in ("params", "bytes")
    )
    return Plan(
        model=network.name, method="two-sided" if network.gradients else "input", keep=target.keep, dtype=dtype,
        seed=seed, unit=SQUARES, layers=made, parameters_before=network.given(dtype)[0],
        parameters_after=network.size(dtype)[0] - params, bytes_before=network.given(dtype)[1],
        bytes_after=network.size(dtype)[1] - size, size=target.size, max_loss_increase=target.loss, cost=target.cost,
        timing=None if times is None else Timing("run", 0, {"run": times.whole}, network.machine()),
    )  # fmt: skip


def check_plan(plan: Plan, network: Network) -> Plan:
    """Return a plan with the totals that it has here; UsageError: it was made for another network."""
    layers, params, size = network.layers(), *network.size(plan.dtype)
    for planned in plan.layers:
        layer = layers.get(planned.name)
        if layer is None or layer.kernel != planned.kernel:
            raise UsageError(
                f"the plan was made for another network: {planned.name} is {planned.kernel} there and "
                + (f"{layer.kernel} here" if layer else "not here"),
                fix="make a plan of this network with eckart.plan",
            )
        if planned.changes and layer.kept:
            raise UsageError(f"{planned.name} cannot be factored: {layer.kept}", fix="make it dense in the plan")
        params += planned.option.params - planned.dense.params
        size += planned.option.bytes - planned.dense.bytes
    return replace(plan, parameters_after=params, bytes_after=size)


def compressed(
    network: _N, batches: Sequence[Batch], plan: Plan, *, correct: bool, seed: int, progress: Progress
) -> _N:
    """Return the network with the plan's forms in place of its kernels, each the best for what it reads.

    correct: whether that is what the layers before it let through once they are compressed; else what it was.
    """
    layers = network.layers()
    forms = {name: (plan.options[name].format, plan.options[name].ranks) for name in layers if name in plan.options}
    small, kernels = network.copy(), {name: _kernel(layers[name]) for name in forms}
    outputs = {name: seen.grams().outputs for name, seen in pulled(network, batches, kernels, seed).items()}

    def put(name: str, weight: Array, inputs: Sequence[Array], shift: Callable[[Array], Array] | None = None) -> None:
        kernel, (_, bias) = kernels[name], network.weight(name)
        weights = factored(kernel, weight, Grams(inputs, outputs[name]), forms[name])
        if bias is not None and shift is not None:
            bias = bias + array_namespace(bias).astype(shift(multiplied(kernel, weights)), bias.dtype)
        small.replace_(name, *forms[name], weights, bias)

    done = 0
    for some in [{name: kernels[name]} for name in kernels] if correct else _together(kernels):
        seen = {} if correct and done else observed(network, batches, some, seed, gradients=False)
        for name, kernel in some.items():
            progress("factorising", done, len(kernels))
            weight, _ = network.weight(name)
            if seen:
                put(name, weight, seen.pop(name).grams().inputs)
            else:
                apart = drift(network, small, batches, name, kernel, seed)
                inputs = [gram.shrunk(INPUT_SHRINKAGE) for gram in apart.inputs]
                put(name, apart.corrected(weight), inputs, partial(apart.shift, weight))
            done += 1
    progress("factorising", done, len(kernels))
    settled = small.settled(network, batches) if kernels else None
    if settled is None:
        return small
    truth = [network.outputs(batch) for batch in batches]
    return min((small, settled), key=lambda one: _mean_square(one, batches, truth))


def _mean_square(network: Network | None, batches: Sequence[Batch], truth: Sequence[Array]) -> float:
    total = 0.0
    for batch, y in zip(batches, truth, strict=False):
        xp = array_namespace(y)
        apart = y if network is None else network.outputs(batch) - y
        total += float(xp.sum(xp.astype(apart, xp.float64) ** 2))
    return total / sum(int(y.shape[0]) * int(y.shape[1]) for y in truth)


def _outputs(network: Network, batches: Sequence[Batch]) -> list[Array]:
    """Return the outputs for the first batches, until these are PROBES examples."""
    found: list[Array] = []
    for batch in batches:
        found.append(network.outputs(batch))
        if sum(len(one) for one in found) >= PROBES:
            break
    return found


def _changed_by(
    network: Network,
    batches: Sequence[Batch],
    truth: Sequence[Array],
    name: str,
    form: Form,
    grams: Grams,
) -> float:
    """Return the mean squared change of an output with one layer in this form."""
    trial, (weight, bias) = network.copy(), network.weight(name)
    trial.replace_(name, *form, factored(_kernel(network.layers()[name]), weight, grams, form), bias)
    return _mean_square(trial, batches, truth)


def _together(kernels: Mapping[str, Kernel]) -> Iterator[dict[str, Kernel]]:
    """Divide layers such that the Gram matrices of each part fit into GRAM_BYTES, or are those of one layer."""
    part: dict[str, Kernel] = {}
    for name, kernel in kernels.items():
        if part and sum(map(gram_bytes, part.values())) + gram_bytes(kernel) > GRAM_BYTES:
            yield part
            part = {}
        part[name] = kernel
    if part:
        yield part


def _middle(kernel: Kernel, forms: Sequence[Form]) -> Form | None:
    """Return the pair whose numbers are nearest to half of the kernel's; None where there is nothing on offer."""
    pairs = [form for form in forms if form[0] == "pair"] or list(forms)
    half = kernel.numbers / 2
    return min(pairs, key=lambda form: abs(numbers(kernel, form) - half), default=None)


def _dense(kernel: Kernel, dtype: str) -> Option:
    return of_stages("dense", (), dtype, (kernel,))


def _chosen(
    network: Network,
    offers: Mapping[str, Sequence[Option]],
    losses: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]],
    target: Target,
    dtype: str,
    times: Times | None,
) -> dict[str, Option]:
    """Return the option of every layer; BudgetError: the smallest are too large."""

    def price(name: str, option: Option) -> float:
        if times is not None:
            return times.price(name, (option.format, option.ranks))
        return option.params if target.cost == "params" else option.bytes

    costs = {
        name: np.array([price(name, option) for option in some], dtype=np.float64) for name, some in offers.items()
    }
    if target.loss is not None:
        turned = {name: Choices(losses[name], costs[name]) for name in offers}
        return {name: offers[name][i] for name, i in least_loss(turned, target.loss).items()}
    saved = sum(price(name, some[0]) - price(name, smallest(offers, price)[name]) for name, some in offers.items())
    asked = f"keep = {target.keep:g}" if target.size is None else f"size = {target.size:,}"
    if times is not None:
        budget = budget_of(offers, 1, 1 - saved, target.keep or 0.0, price, asked, "of the time")
    else:
        counted = ("params", "bytes").index(target.cost)
        given, whole = network.given(dtype)[counted], network.size(dtype)[counted]
        allowed = target.size if target.size is not None else int((target.keep or 0) * given)
        budget = budget_of(offers, whole, whole - saved, allowed, price, asked, ("parameters", "bytes")[counted])
    known = {name: Choices(costs[name], losses[name]) for name in offers}
    return {name: offers[name][i] for name, i in least_loss(known, budget).items()}


def _layer_plan(
    layer: Layer, reason: str, option: Option | None, lost: Mapping[Form, float], dtype: str, times: Times | None
) -> LayerPlan:
    kernel = _kernel(layer)
    dense = _dense(kernel, dtype)
    made = LayerPlan(layer.name, layer.rows, layer.columns, layer.bias, option or dense, dense, kernel=kernel)
    if option is None or not option.ranks:
        return replace(made, loss_increase=0.0, relative_error=0.0, kept=reason)
    form = option.format, option.ranks
    saved = None if times is None else {"run": times.saved(layer.name, form)}
    error = (lost[form] / lost["", ()]) ** 0.5 if lost["", ()] > 0 else 0.0
    return replace(made, loss_increase=lost[form], relative_error=error, saved_ms=saved)


def _kernel(layer: Layer) -> Kernel:
    assert layer.kernel is not None, layer.name
    return layer.kernel
