"""The compression methods: in which metric a weight is truncated, and how ranks are chosen. One literal table.

Baselines follow their authors' formulas: the same weights, up to rounding, at the same rank and statistics, which
tests/reference/test_baselines.py and tests/models/test_{lems,reshape}.py check. Not verified: "slicegpt", a variant of
SliceGPT; of "lems", the choice of ranks, for which it has other solvers. docs/decisions/0018 says how they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from eckart._compress._plan import NATS, SQUARES
from eckart._compress._reshape import DROP_LAYERS, SLICE, Reshape
from eckart.errors import UsageError

if TYPE_CHECKING:
    from eckart._factorise import Cut, Spectrum
    from eckart.models._huggingface import HuggingFaceModel
    from eckart.models._option import Option
    from eckart.models._taps import Gradients, Taps

__all__ = [
    "GRADIENT_SHRINKAGE",
    "INPUT_SHRINKAGE",
    "METHODS",
    "SEQUENTIAL",
    "Correction",
    "Method",
    "choose_method",
    "predicted_loss",
]

Metric = Callable[["Taps", str], tuple[Any, Any]]

INPUT_SHRINKAGE = 0.02  # of the input Gram; flat from .005 to .1 on SmolLM2-135M
GRADIENT_SHRINKAGE = 0.1  # of the output-gradient Gram; flat from .1 to .3 there
KFAC_SHRINKAGE = 0.1, 0.3  # of the two, in LEMS
ASVD_POWER = 0.5  # of the mean |x|
SMALL = 1e-6  # added to a diagonal by ASVD and FWSVD, lest it be zero


@dataclass(frozen=True)
class Correction:
    """How factors are fitted anew once ranks are chosen; `_correct` has the formulas.

    target: τ, the share of the dense network's own output in what is aimed at. ridge: β as a part of the mean diagonal
    of G'; 0 only without shrinkage, that of G' in the metric in which `up` is fitted. together: all layers of a block
    at once, which is dense inside meanwhile; else each in the order in which they run, after those before it.
    down_ridge: where given, `down` is fitted after `up`, to the dense solution with this ridge towards W, added to the
    sums as it is.
    """

    target: float
    ridge: float
    together: bool
    shrinkage: float = 0.0
    down_ridge: float | None = None


SEQUENTIAL = Correction(target=0.75, ridge=0.05, together=False, shrinkage=INPUT_SHRINKAGE)


@dataclass(frozen=True)
class Method:
    """One row of the table.

    metric: from what was tapped, the Grams (inputs, outputs) in which a layer is truncated, None for I. inputs: whether
    it needs a calibration text. gradients: what it needs of a backward pass. ranks: "knapsack", the least predicted
    loss; "uniform", the same fraction of every layer; "by type", fractions by SVD-LLM v2's rule within layers of the
    same type; "search", by divergences that are measured, as in LEMS; "none", every layer is stored whole, in int8.
    scale: of a truncation, the predicted loss increase that a squared error of 1 in its metric means. unit: what that
    is measured in. storage: what "auto" storage is, of the baselines what their authors do. tables: whether it takes in
    an embedding and the head tied to it. correction: that which is part of the method. shares: whether layers of the
    same type in adjacent blocks share a factor. reshape: where given, what is done to the model as a whole; its layers
    stay as they are, and nothing else of the row matters but inputs.
    """

    name: str
    metric: Metric
    inputs: bool
    gradients: Gradients
    ranks: Literal["knapsack", "uniform", "by type", "search", "none"]
    scale: Callable[[Spectrum], float]
    unit: str
    storage: str = "pair"
    tables: bool = False
    correction: Correction | None = None
    shares: bool = False
    reshape: Reshape | None = None

    @property
    def uniform(self) -> bool:
        """Whether the choice of ranks asks for every rank, and not for a few among which a knapsack chooses."""
        return self.ranks in ("uniform", "by type")


def predicted_loss(method: Method, cut: Cut, option: Option) -> float:
    """Return the loss increase that a method predicts of a layer stored as an option: truncated, and rounded."""
    parts = cut.parts(option.format, option.ranks)
    return sum(method.scale(part) * part.error(form, option.dtype, k) for part, form, k in parts)


def _second_order(cut: Spectrum) -> float:
    """½ ‖Yᵀ δW X‖²: second-order term of the mean next-token loss, its Hessian taken as the Fisher matrix Γ ⊗ G."""
    return 0.5


def _squared(cut: Spectrum) -> float:
    """‖Yᵀ δW X‖², as it is: with probes of the outputs, the mean squared change of one, its Gauss–Newton matrix taken
    as Γ ⊗ G.
    """
    return 1.0


def _relative(cut: Spectrum) -> float:
    """‖Yᵀ δW X‖² / ‖Yᵀ W X‖²: comparable between layers in form only, not in effect."""
    return 1 / float(cut.losses[0]) if cut.losses[0] > 0 else 1.0


def _weights_alone(taps: Taps, name: str) -> tuple[Any, Any]:
    return None, None


def _inputs(shrinkage: float) -> Metric:
    return lambda taps, name: (taps.inputs[name].shrunk(shrinkage), None)


def _sums_of_inputs(taps: Taps, name: str) -> tuple[Any, Any]:
    return taps.inputs[name].shrunk(0.0) * taps.inputs[name].count, None


def _two_sided(inputs: float, outputs: float) -> Metric:
    return lambda taps, name: (taps.inputs[name].shrunk(inputs), taps.outputs[name].shrunk(outputs))


def _asvd(taps: Taps, name: str) -> tuple[Any, Any]:
    """Columns of W times (mean |x|)^½ (arXiv 2312.05821, without its search for ranks by perplexity)."""
    seen = taps.inputs[name]
    return ((seen.sizes / max(seen.count, 1)) ** ASVD_POWER + SMALL).square().diag(), None


def _fwsvd(taps: Taps, name: str) -> tuple[Any, Any]:
    """Columns of W times the root of the squared gradients of their weights (arXiv 2207.00112)."""
    squares = taps.weights[name]
    return (squares.sqrt() / squares.sqrt().mean().clamp_min(1e-300) + SMALL).square().diag(), None


_OUTPUT, _WEIGHT = "squared relative output error", "squared relative weight error"
_MEASURED = "nats a token, measured at one rank and scaled"
_TABLE = (
    #      name          metric                        inputs gradients  ranks       scale          unit
    Method("two-sided", _two_sided(INPUT_SHRINKAGE, GRADIENT_SHRINKAGE), True, "all", "knapsack", _second_order,
           NATS, storage="auto", tables=True),
    Method("input",      _inputs(INPUT_SHRINKAGE),     True,  "none",    "knapsack", _relative,     _OUTPUT, "auto"),
    Method("plain",      _weights_alone,               False, "none",    "uniform",  _relative,     _WEIGHT),
    Method("int8",       _weights_alone,               False, "none",    "none",     _relative,     _WEIGHT,
           tables=True),
    Method("fwsvd",      _fwsvd,                       True,  "weights", "uniform",  _relative,     _WEIGHT),
    Method("asvd",       _asvd,                        True,  "none",    "uniform",  _relative,     _WEIGHT),
    Method("svd-llm",    _inputs(0.0),                 True,  "none",    "uniform",  _relative,     _OUTPUT),
    Method("svd-llm-update", _inputs(0.0),             True,  "none",    "uniform",  _relative,     _OUTPUT,
           correction=Correction(target=0.0, ridge=0.0, together=True)),
    Method("mpifa",      _inputs(0.0),                 True,  "none",    "uniform",  _relative,     _OUTPUT, "pifa",
           correction=Correction(target=0.25, ridge=0.0, together=False, down_ridge=1e-3)),
    Method("svd-llm-v2", _sums_of_inputs,              True,  "none",    "by type",  _relative,     _OUTPUT),
    Method("basis-sharing", _sums_of_inputs,           True,  "none",    "uniform",  _relative,     _OUTPUT,
           shares=True),
    Method("drop-layers", _weights_alone,              True,  "none",    "uniform",  _relative,     _OUTPUT,
           reshape=DROP_LAYERS),
    Method("slicegpt",   _weights_alone,               True,  "none",    "uniform",  _relative,     _OUTPUT,
           reshape=SLICE),
    Method("kfac",       _two_sided(*KFAC_SHRINKAGE),  True,  "clipped", "uniform",  _second_order, NATS),
    Method("lems",       _two_sided(*KFAC_SHRINKAGE),  True,  "clipped", "search",   _squared,      _MEASURED),
)  # fmt: skip
METHODS = {method.name: method for method in _TABLE}


LOSSES = ("auto", "next-token", "outputs")


def choose_method(name: str, loss: str, model: HuggingFaceModel) -> Method:
    """Return the method of this name, for this loss; "auto" are two-sided, and next-token where the model has that."""
    if loss not in LOSSES:
        raise UsageError(f"there is no loss {loss!r}", fix=f"one of {', '.join(LOSSES)}")
    if name != "auto" and name not in METHODS:
        raise UsageError(f"there is no method {name!r}", fix=f"one of auto, {', '.join(METHODS)}")
    method = METHODS["two-sided" if name == "auto" else name]
    if loss != "auto" and method.unit != NATS:
        raise UsageError(f"method {name!r} asks for no loss, so loss= has no meaning", fix="method='two-sided'")
    if loss == "outputs" or (loss == "auto" and method.unit == NATS and not model.predicts_next_token):
        return replace(method, scale=_squared, unit=SQUARES, tables=False)
    if method.gradients != "none" and not model.predicts_next_token:
        raise UsageError(
            f"{type(model.module).__name__} has no next-token loss, which method {name!r} or loss= asks for",
            fix="loss='outputs' with method='two-sided', or method='input'",
        )
    return method
