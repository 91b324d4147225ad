"""The answer of a rank rule: the number, and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, asdict, dataclass, field
from typing import Any

__all__ = ["Margin", "Rank"]


@dataclass(frozen=True)
class Margin:
    """The ratios of the last kept value and of the next one to the threshold; None: there is no such value."""

    kept: float | None = None
    next: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Rank(int):
    """A rank, which is an int in every respect, with the reason for it.

    rule: the rule that gave it. reason: one sentence. noise: the model of the noise. sigma: the root mean square of the
    noise, in the unit of the matrix. threshold: what a singular value must exceed, of the matrix or, for "whitened" and
    "parallel", of the matrix with rows or columns divided by their scale. margin: the two values next to it.
    detectable: the weakest component that can be told from the noise, 1.5 times the BBP threshold, as a singular value
    before the noise came on top, in the same unit. undetectable: how many values stand out of the noise by components
    weaker than that; whether they are kept is a guess. votes: what other rules say. None: the rule has no such figure.
    """

    value: InitVar[int]
    rule: str
    reason: str
    noise: str
    sigma: float | None = None
    threshold: float | None = None
    margin: Margin = field(default_factory=Margin)
    detectable: float | None = None
    undetectable: int = 0
    votes: Mapping[str, int] = field(default_factory=dict)

    def __new__(cls, value: int, *_: Any, **__: Any) -> Rank:
        return int.__new__(cls, value)

    def __post_init__(self, value: int) -> None:
        """Nothing to do: the number itself was set when the int was made."""

    def __repr__(self) -> str:
        return f"Rank({int(self)}, rule={self.rule!r}, noise={self.noise!r})"

    def __str__(self) -> str:
        return str(int(self))

    def as_dict(self) -> dict[str, Any]:
        """Return the rank and all that it carries in the types of JSON."""
        return {"rank": int(self), **asdict(self)}
