"""The plan of a compression: which layer becomes what, and what that costs. Data: it prints, saves, can be edited."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eckart._files import dump_json, write_whole
from eckart.errors import InputError, UsageError
from eckart.models._kernel import Kernel, kernel_from_json, stages
from eckart.models._option import Option, dense, factored, group_sizes, grouped, of_stages, read_option, shared

__all__ = ["ADDITIVE_UNITS", "NATS", "SQUARES", "LayerPlan", "Plan", "Timing"]

SCHEMA = "eckart.plan/1"
NATS = "nats a token"  # of the next-token loss
SQUARES = "mean squared change of an output"  # over all numbers that the model returns
ADDITIVE_UNITS = (NATS, SQUARES)  # relative errors of different layers have no meaningful sum


@dataclass(frozen=True)
class LayerPlan:
    """What one layer becomes. dense: what it is where it stays as it is. loss_increase: predicted, in the plan's unit,
    beside that; None where it was not worked out.

    relative_error: predicted ‖output change‖ / ‖output‖ in the plan's metric. kept: why it had to stay dense, or "".
    table: whether it is an embedding, whose rows have ranks by groups. saved_ms: how much less time than when dense it
    is predicted to take, by phase; None where that is not known, and of a dense layer. kernel: of a layer in a network
    of convolutions.
    """

    name: str
    rows: int
    columns: int
    bias: bool
    option: Option
    dense: Option
    loss_increase: float | None = None
    relative_error: float | None = None
    kept: str = ""
    table: bool = False
    saved_ms: Mapping[str, float] | None = None
    kernel: Kernel | None = None

    @property
    def changes(self) -> bool:
        """Whether anything is done to it: in int8 a layer changes though it is not factored."""
        return self.option != self.dense

    @property
    def break_even_rank(self) -> float:
        """The rank at which a factor pair stores as many numbers as the matrix."""
        return self.rows * self.columns / (self.rows + self.columns)


@dataclass(frozen=True)
class Timing:
    """What a time was counted in. before_ms: measured of the dense model, by phase: "prefill", a pass over
    prefill_tokens tokens, and "decode", one more token. machine: on which, and with what.
    """

    workload: str
    prefill_tokens: int
    before_ms: Mapping[str, float]
    machine: str


@dataclass(frozen=True)
class Plan:
    """One option a layer, and the totals that follow from them; parameters and bytes are exact, the loss is predicted.

    keep, size, max_loss_increase: which of these was asked for, and cost: what was counted, "params", "bytes" or "ms",
    in keep, or made small within the loss. correct: whether factors are fitted anew, in order, to the compressed
    network. change: what is done to the model as a whole, by a method that leaves the layers as they are: {"dropped":
    names of blocks} or {"hidden_size": number}. unit: of every loss_increase. bytes count the weight files, headers and
    index included; bytes_before is the dense model saved in the same dtype. timing: where time counted.
    """

    model: str
    method: str
    keep: float | None
    dtype: str
    seed: int
    unit: str
    layers: tuple[LayerPlan, ...]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    size: int | None = None
    max_loss_increase: float | None = None
    cost: str = "params"
    timing: Timing | None = None
    correct: bool = False
    change: Mapping[str, Any] | None = None

    @property
    def options(self) -> dict[str, Option]:
        """The layers that change, and into what."""
        return {layer.name: layer.option for layer in self.layers if layer.changes}

    @property
    def keep_reached(self) -> float:
        return self.parameters_after / self.parameters_before

    @property
    def predicted_loss_increase(self) -> float | None:
        """Sum over the layers; None where a layer's is not known, or losses in this unit do not add up."""
        if self.unit not in ADDITIVE_UNITS or self.change is not None:
            return None
        parts = [layer.loss_increase for layer in self.layers if layer.changes]
        return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)

    @property
    def after_ms(self) -> dict[str, float] | None:
        """The predicted time by phase; None where no time counted, or that of a layer is not known."""
        saved = [layer.saved_ms for layer in self.layers if layer.option.format != "dense"]
        known = [part for part in saved if part is not None]
        if self.timing is None or len(known) < len(saved):
            return None
        return {phase: ms - sum(part[phase] for part in known) for phase, ms in self.timing.before_ms.items()}

    def with_rank(self, name: str, k: int | None) -> Plan:
        """Return this plan with one layer at rank k, or as it was where k is None.

        It keeps its format and type; a dense layer becomes a factor pair, and of an embedding all groups of rows get
        this rank. The totals follow: the bytes are those of the numbers that change, and `compress` recomputes the
        files' exact size; the layer's loss is unknown. Layers that share a factor change together.
        """
        return self._with(name, lambda layer: _at_rank(layer, k))

    def with_dtype(self, name: str, dtype: str) -> Plan:
        """Return this plan with one layer stored in another type, "int8" among them; the rest as in `with_rank`."""
        return self._with(name, lambda layer: layer.option.stored_as(dtype, layer.rows, layer.columns, layer.bias))

    def _with(self, name: str, option_of: Callable[[LayerPlan], Option]) -> Plan:
        found = [layer for layer in self.layers if layer.name == name]
        if not found:
            raise UsageError(f"the plan has no layer {name!r}", fix=f"for example {self.layers[0].name!r}")
        owner = found[0].option.down_of or name
        changed = {
            layer.name: (layer.option, _unpredicted(replace(layer, option=option_of(layer))))
            for layer in self.layers
            if owner in (layer.name, layer.option.down_of)
        }
        return replace(
            self,
            layers=tuple(changed[layer.name][1] if layer.name in changed else layer for layer in self.layers),
            parameters_after=self.parameters_after
            + sum(new.option.params - old.params for old, new in changed.values()),
            bytes_after=self.bytes_after + sum(new.option.bytes - old.bytes for old, new in changed.values()),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, schema "eckart.plan/1"; on loading only `layers[].option` decides."""
        names = ("model", "method", "keep", "dtype", "seed", "unit", "parameters_before", "parameters_after")
        return {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in (*names, "bytes_before", "bytes_after")},
            **{name: getattr(self, name) for name in ("size", "max_loss_increase", "cost", "correct", "change")},
            "keep_reached": self.keep_reached,
            "predicted_loss_increase": self.predicted_loss_increase,
            "timing": None if self.timing is None else {**vars(self.timing), "after_ms": self.after_ms},
            "layers": [_layer_to_json(layer) for layer in self.layers],
        }

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        with write_whole(Path(path)) as file:
            file.write(dump_json(self.to_json()).encode())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan, edited by hand or not. InputError: malformed, or newer than this version reads."""
        try:
            value = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise InputError(
                f"cannot read the plan {path}: {error.strerror}", file=str(path), code="E-missing"
            ) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON: {error}", file=str(path)) from error
        return cls.from_json(value)

    @classmethod
    def from_json(cls, value: Any) -> Plan:
        """Return the plan that `to_json` gave; what follows from ranks and shapes is computed again, not believed."""
        if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
            found = value.get("schema") if isinstance(value, Mapping) else type(value).__name__
            raise InputError(f"not a plan that this Eckart reads: schema {found!r}, expected {SCHEMA!r}")
        try:
            written = tuple(_layer_from_json(layer, str(value["dtype"])) for layer in value["layers"])
            layers = tuple(layer for layer, _ in written)
            more_params = sum(layer.option.params - old["params"] for layer, old in written)
            more_bytes = sum(layer.option.bytes - old["bytes"] for layer, old in written)
            keep, size, most = value["keep"], value["size"], value["max_loss_increase"]
            return cls(
                model=str(value["model"]),
                method=str(value["method"]),
                keep=None if keep is None else float(keep),
                dtype=str(value["dtype"]),
                seed=int(value["seed"]),
                unit=str(value["unit"]),
                layers=layers,
                parameters_before=int(value["parameters_before"]),
                parameters_after=int(value["parameters_after"]) + more_params,
                bytes_before=int(value["bytes_before"]),
                bytes_after=int(value["bytes_after"]) + more_bytes,
                size=None if size is None else int(size),
                max_loss_increase=None if most is None else float(most),
                cost=str(value["cost"]),
                timing=_timing_from_json(value.get("timing")),
                correct=bool(value.get("correct", False)),
                change=None if value.get("change") is None else dict(value["change"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, (InputError, UsageError)):
                raise
            raise InputError(f"the plan is malformed: {type(error).__name__} {error}") from error

    def summary(self) -> str:
        """Return the totals in one line."""
        options = self.options.values()
        factored, rounded = sum(bool(option.ranks) for option in options), _in_int8(options)
        line = (
            f"{self.method}: {self.parameters_before:,} -> {self.parameters_after:,} parameters "
            f"({self.keep_reached:.2%}), {self.bytes_before:,} -> {self.bytes_after:,} bytes in {self.dtype}, "
        )
        if self.change is not None:
            return line + " ".join(f"{what} {value}" for what, value in self.change.items())
        line += f"{factored} layers factored{rounded}, {len(self.layers) - len(options)} left as they are"
        after = self.after_ms
        if self.timing is not None:
            units = {"prefill": f"ms for {self.timing.prefill_tokens} tokens", "decode": "ms a token"}
            units["run"] = "ms"
            for phase, ms in self.timing.before_ms.items():
                predicted = "?" if after is None else f"{after[phase]:.4g}"
                line += f", {phase} {ms:.4g} -> {predicted} {units[phase]}"
        loss = self.predicted_loss_increase
        return line if loss is None else f"{line}, predicted loss increase {loss:.3g} {self.unit}"

    def __str__(self) -> str:
        """The plan as a table: the totals, then a line a layer."""
        phases = () if self.timing is None else tuple(self.timing.before_ms)
        lines = [
            self.summary(),
            f"{'layer':44} {'shape':>13} {'becomes':>14} {'params':>11} {'loss +':>10}"
            + "".join(f" {f'{phase} ms':>11}" for phase in phases),
        ]
        for layer in self.layers:
            dtype = "" if layer.option.dtype == self.dtype else layer.option.dtype
            becomes = " ".join(filter(None, (layer.option.format, "/".join(map(str, layer.option.ranks)), dtype)))
            loss = "" if layer.loss_increase is None else f"{layer.loss_increase:.2e}"
            saved = ["" if layer.saved_ms is None else f"{-layer.saved_ms[phase]:+.4f}" for phase in phases]
            lines.append(
                f"{layer.name:44} {f'{layer.rows} x {layer.columns}':>13} {becomes:>14} {layer.option.params:>11,} "
                f"{loss:>10}{''.join(f' {ms:>11}' for ms in saved)}  {layer.kept}".rstrip()
            )
        return "\n".join(lines)


def _at_rank(layer: LayerPlan, k: int | None) -> Option:
    rows, columns, bias, form, dtype = layer.rows, layer.columns, layer.bias, layer.option.format, layer.option.dtype
    if k is None:
        return layer.dense
    if layer.kernel is not None:
        form = "pair" if form == "dense" else form
        ranks = [k] if form != "tucker" else [min(k, layer.kernel.into), min(k, rows)]
        return of_stages(form, ranks, dtype, stages(layer.kernel, form, ranks))
    if layer.table:
        return grouped(rows, columns, bias, dtype, [k] * len(group_sizes(rows)))
    if form == "shared":
        return shared(rows, columns, bias, dtype, k, layer.option.down_of)
    return factored("pair" if form == "dense" else form, rows, columns, bias, dtype, k)


def _unpredicted(layer: LayerPlan) -> LayerPlan:
    """Return a layer whose option was changed by hand."""
    loss = None if layer.changes else 0.0
    return replace(layer, loss_increase=loss, relative_error=loss, saved_ms=None)


def _in_int8(options: Collection[Option]) -> str:
    count = sum(option.dtype == "int8" for option in options)
    return f", {count} in int8" if count else ""


def _layer_to_json(layer: LayerPlan) -> dict[str, Any]:
    return {
        "name": layer.name,
        "rows": layer.rows,
        "columns": layer.columns,
        "bias": layer.bias,
        "kept": layer.kept,
        "table": layer.table,
        "option": layer.option.to_json(),
        "planned_ranks": list(layer.option.ranks),
        "planned_dtype": layer.option.dtype,
        "params": layer.option.params,
        "params_before": layer.dense.params,
        "bytes": layer.option.bytes,
        "break_even_rank": layer.break_even_rank,
        "loss_increase": layer.loss_increase,
        "relative_error": layer.relative_error,
        "saved_ms": None if layer.saved_ms is None else dict(layer.saved_ms),
        "kernel": None if layer.kernel is None else asdict(layer.kernel),
    }


def _layer_from_json(value: Mapping[str, Any], dtype: str) -> tuple[LayerPlan, Mapping[str, Any]]:
    """Return the layer, and what was written of it; an edited rank or type loses its prediction. dtype: the plan's."""
    rows, columns, bias = int(value["rows"]), int(value["columns"]), bool(value["bias"])
    kernel = None if value.get("kernel") is None else kernel_from_json(value["kernel"])
    option = read_option(value["option"], rows, columns, bias, kernel)
    edited = (list(option.ranks), option.dtype) != (value["planned_ranks"], value["planned_dtype"])
    saved = None if option.params != value["params"] else value.get("saved_ms")  # params: its format was edited
    layer = LayerPlan(
        name=str(value["name"]),
        rows=rows,
        columns=columns,
        bias=bias,
        option=option,
        dense=dense(rows, columns, bias, dtype) if kernel is None else of_stages("dense", (), dtype, [kernel]),
        kernel=kernel,
        loss_increase=value["loss_increase"],
        relative_error=value["relative_error"],
        kept=str(value["kept"]),
        table=bool(value.get("table", False)),
        saved_ms=None if saved is None else {str(phase): float(ms) for phase, ms in saved.items()},
    )
    return (_unpredicted(layer) if edited else layer), value


def _timing_from_json(value: Mapping[str, Any] | None) -> Timing | None:
    if value is None:
        return None
    before = {str(phase): float(ms) for phase, ms in value["before_ms"].items()}
    return Timing(str(value["workload"]), int(value["prefill_tokens"]), before, str(value["machine"]))
