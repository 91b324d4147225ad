"""Factors of an embedding, a large head, or both where they are tied: rows in groups, each truncated at its own rank.

Row v is looked up with a share f_v of all tokens, and predicted with about the same share. With G, the Gram of what the
head reads, and Γ, that of the gradient in what is looked up, a change D of the table costs to second order
½ Σ_v f_v d_v (G + Γ) d_vᵀ nats a token: for the lookup as any layer's change does, for the head since the Hessian of
its loss in the logits is at most diag(p). Both uses have one metric, so they have one set of factors. An embedding that
is not tied has Γ alone and a head G alone.

The text that is calibrated on shows a part of the vocabulary; PRIOR of f is what tokenizers' vocabularies show of
others: they list tokens by falling frequency, which falls as one over the place (Zipf).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eckart._compress._methods import GRADIENT_SHRINKAGE, INPUT_SHRINKAGE
from eckart._factorise import Pair, RowGroups
from eckart.models._option import RANK_STEP, group_sizes

if TYPE_CHECKING:
    import torch

    from eckart._compress._journal import StoredTruncation
    from eckart._factorise import Gram, Spectrum
    from eckart.models._taps import TableTaps

__all__ = ["StoredTable", "groups_of", "metric_of", "ranks_of_group", "row_weights"]

PRIOR = 0.3  # on SmolLM2-135M at 80 %: less does better on the calibrated domain and worse on others
ZIPF_OFFSET = 10.0


@dataclass(frozen=True)
class StoredTable:
    """The truncations of the groups of a table, in order, and the rows of each; `weight` (rows, columns) itself.

    bias: whether a bias is stored beside it.
    """

    weight: torch.Tensor
    rows: tuple[torch.Tensor, ...]
    cuts: tuple[StoredTruncation, ...]
    bias: bool = False

    def parts(self, form: str, ranks: Sequence[int]) -> list[tuple[Spectrum, str, int]]:
        columns = self.weight.shape[1]
        return [
            (cut, "dense" if k == columns else "pair", min(k, len(cut.s)))
            for cut, k in zip(self.cuts, ranks or [columns] * len(self.cuts), strict=True)
        ]

    def factors(self, form: str, ranks: Sequence[int]) -> RowGroups:
        """Return the groups at these ranks; one of all columns stays as it is."""
        import torch

        columns = self.weight.shape[1]
        parts: list[torch.Tensor | Pair] = [
            self.weight[rows] if k == columns else cut.factors("pair", [k])
            for rows, cut, k in zip(self.rows, self.cuts, ranks, strict=True)
        ]
        order = torch.empty(len(self.weight), dtype=torch.int32)
        order[torch.cat(self.rows)] = torch.arange(len(order), dtype=torch.int32)
        return RowGroups(tuple(parts), order)


def row_weights(taps: TableTaps) -> torch.Tensor:
    """Return the share f of every row, (rows,), float64, with sum 1 and none zero."""
    import torch

    seen = [t / t.sum() for t in (taps.looked_up, taps.predicted) if float(t.sum()) > 0]
    places = torch.arange(len(taps.looked_up), dtype=torch.float64, device=taps.looked_up.device)
    zipf = 1 / (places + ZIPF_OFFSET)
    prior = (zipf / zipf.sum() + 1 / len(places)) / 2
    return (1 - PRIOR) * sum(seen) / len(seen) + PRIOR * prior


def groups_of(weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the rows of each group, the heaviest first."""
    return tuple(weights.argsort(descending=True, stable=True).split(group_sizes(len(weights))))


def metric_of(taps: TableTaps, gradients: Gram | None) -> torch.Tensor:
    """Return G + Γ, (columns, columns): what a head reads, if one does, and the gradient, if rows are looked up."""
    parts = [] if gradients is None else [gradients.shrunk(GRADIENT_SHRINKAGE)]
    if taps.inputs is not None:
        parts.append(taps.inputs.shrunk(INPUT_SHRINKAGE).to(parts[0].device if parts else taps.inputs.sum.device))
    metric: torch.Tensor = sum(parts[1:], parts[0])
    return metric


def ranks_of_group(size: int, columns: int) -> list[int]:
    """Return the ranks on offer for a group: multiples of 8 that save numbers, and all columns: dense."""
    return [k for k in range(RANK_STEP, columns, RANK_STEP) if k * (size + columns) < size * columns] + [columns]
