"""The result of `compare` and `compress` as JSON, schema "eckart.compare/1": its fields, checked where it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eckart.errors import InputError

__all__ = ["Layer", "Model", "Plan", "Quality", "Result", "Spread", "parse", "read_result"]

SCHEMAS = ("eckart.compare/1",)

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    """Exactly these fields, of exactly these types; JSON itself has only finite numbers."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())


class Spread(_Part):
    """Tokens a second: median and quartiles over the runs; ratio: the same of the run-wise ratio to the baseline."""

    median: Positive
    low: Positive
    high: Positive
    runs: Count
    ratio: tuple[Positive, Positive, Positive] | None = None


class Quality(_Part):
    """Of one model on one text; null where it does not apply or is not finite."""

    tokens: Count
    perplexity: Positive | None
    kl: float | None
    top1_agreement: Annotated[float, Field(ge=0, le=1)] | None
    relative_error: NotNegative | None


class Model(_Part):
    """One model; bytes are of its weight files."""

    label: str
    path: str
    model_type: str
    dtype: str
    parameters: Annotated[Count, Field(gt=0)]
    file_bytes: Annotated[Count, Field(gt=0)]
    file_bytes_note: str
    input_bytes: Count | None
    quality: dict[str, Quality]
    prefill: Spread | None
    decode: Spread | None


class Text(_Part):
    """A text that was measured on: the tokens used, in pieces of `context`."""

    name: str
    tokens: Count
    context: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class SpeedSettings(_Part):
    prefill_tokens: Count
    decode_tokens: Count
    runs: Count
    dtype: str


class Machine(_Part):
    cpu: str
    cores: Count
    threads: Count
    gflops_float32: Positive | None
    device: str


class Option(_Part):
    """What a layer becomes: "dense" with no rank, "grouped" with one a group, and others with one.

    down_of: the layer whose `down` a "shared" one uses.
    """

    version: Literal[1]
    format: Literal["dense", "pair", "shared", "pifa", "folded", "grouped", "spatial", "tucker"]
    ranks: tuple[Count, ...]
    dtype: str
    down_of: str = ""

    @model_validator(mode="after")
    def _one_rank_for_factors(self) -> Option:
        wanted = {"dense": 0, "tucker": 2, "grouped": max(1, len(self.ranks))}.get(self.format, 1)
        if len(self.ranks) != wanted:
            raise ValueError(f"{self.format!r} with {len(self.ranks)} ranks")
        return self


class Kernel(_Part):
    """The shape and the steps of a layer in a network of convolutions; () of a matrix."""

    out: Annotated[Count, Field(gt=0)]
    into: Annotated[Count, Field(gt=0)]
    size: tuple[Count, ...]
    stride: tuple[Count, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[Count, ...]
    groups: Annotated[Count, Field(gt=0)]
    transposed: bool
    mode: str
    bias: bool


class Layer(_Part):
    """One layer of the plan. loss_increase, relative_error: predicted. kept: why it had to stay dense, or ""."""

    name: str
    rows: Annotated[Count, Field(gt=0)]
    columns: Annotated[Count, Field(gt=0)]
    bias: bool
    kept: str
    table: bool = False
    option: Option
    planned_ranks: tuple[Count, ...]
    planned_dtype: str
    params: Count
    params_before: Annotated[Count, Field(gt=0)]
    bytes: Count
    break_even_rank: Positive
    loss_increase: float | None
    relative_error: NotNegative | None
    saved_ms: dict[str, float] | None = None
    kernel: Kernel | None = None

    @property
    def rank(self) -> int | None:
        """None where the layer is not factored; the highest of a table's groups."""
        return max(self.option.ranks, default=None)

    @property
    def becomes(self) -> str:
        """Its option in words: format, ranks, and the type where that is int8."""
        return " ".join([self.option.format, *map(str, self.option.ranks), *(["int8"] if self.in_int8 else [])])

    @property
    def in_int8(self) -> bool:
        return self.option.dtype == "int8"

    @property
    def stays(self) -> bool:
        """Whether it is the matrix that it was, in a floating-point type."""
        return self.rank is None and not self.in_int8

    @property
    def kept_fraction(self) -> float:
        """Parameters after over parameters before; above 1 where the rank is above break-even."""
        return self.params / self.params_before


class Timing(_Part):
    """What a plan's time was counted in: milliseconds of each phase, measured before and predicted after."""

    workload: Literal["prefill", "decode", "both", "run"]
    prefill_tokens: Count
    before_ms: dict[str, Positive]
    after_ms: dict[str, float] | None
    machine: str


class Plan(_Part):
    """One option a layer. change: what a method does to the model as a whole: blocks dropped, or its hidden size."""

    version: Literal["eckart.plan/1"] = Field(alias="schema")
    model: str
    method: str
    keep: float | None
    size: Count | None
    max_loss_increase: NotNegative | None
    cost: Literal["params", "bytes", "ms"]
    dtype: str
    seed: int
    unit: str
    layers: tuple[Layer, ...]
    parameters_before: Annotated[Count, Field(gt=0)]
    parameters_after: Count
    bytes_before: Count
    bytes_after: Count
    keep_reached: NotNegative
    predicted_loss_increase: float | None
    correct: bool = False
    change: dict[str, tuple[str, ...] | Count] | None = None
    timing: Timing | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> Plan:
        seen: set[str] = set()
        for layer in self.layers:
            if layer.name in seen:
                raise ValueError(f"layer {layer.name!r} is there twice")
            seen.add(layer.name)
        return self


class Recovery(_Part):
    """How long models[1] was trained, its divergence on held-out text before and after, and if that was kept."""

    steps: Count
    tokens: Count
    before: float
    after: float
    kept: bool


class Result(_Part):
    """What was measured, on what and how; models[0] is the baseline of every ratio."""

    version: Literal["eckart.compare/1"] = Field(alias="schema")
    eckart: str
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    command: str
    seed: int
    machine: Machine
    versions: dict[str, str]
    texts: tuple[Text, ...]
    speed_settings: SpeedSettings | None
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    plan: Plan | None
    recovery: Recovery | None = None
    warnings: tuple[str, ...]

    @model_validator(mode="after")
    def _texts_are_listed(self) -> Result:
        listed = {text.name for text in self.texts}
        for i, model in enumerate(self.models):
            for name in model.quality.keys() - listed:
                raise ValueError(f"models[{i}].quality has the text {name!r}, which texts does not list")
        return self

    @property
    def baseline(self) -> Model:
        return self.models[0]

    @property
    def others(self) -> tuple[Model, ...]:
        return self.models[1:]


def read_result(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file after proof that it is a result. InputError: unreadable, or not one."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", file=str(path), code="E-missing") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}", file=str(path)) from error
    parse(value, str(path))
    assert isinstance(value, dict)
    return value


def parse(value: Any, file: str = "") -> Result:
    """Return the JSON object as a Result; a Result as it is.

    InputError: another schema or version, or a field that is missing, unknown or wrong, which is named.
    """
    if isinstance(value, Result):
        return value
    where = file or "the result"
    found = value.get("schema") if isinstance(value, Mapping) else None
    if found not in SCHEMAS:
        raise InputError(
            f"{where} is not a result that this Eckart reads: schema {found!r}",
            why=f"understood: {', '.join(SCHEMAS)}",
            fix="pip install --upgrade eckart, if it is from a newer one",
            file=file,
            code="E-schema",
        )
    try:
        return Result.model_validate_json(json.dumps(value, allow_nan=False))
    except ValidationError as error:
        raise InputError(
            f"{where} is malformed: {'; '.join(_complaints(error))}", file=file, code="E-schema"
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where} is malformed: {error}", file=file, code="E-schema") from error


def _complaints(error: ValidationError, most: int = 3) -> Iterator[str]:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    for problem in problems[:most]:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        yield f"{place.lstrip('.') or 'the whole'}: {problem['msg']}"
    if len(problems) > most:
        yield f"and {len(problems) - most} more"
