"""A table of rows, looked up in by index, multiplied by, or both, stored in int8 or in groups of rows.

Of groups, the frequent rows come first and keep more rank. One set of tensors serves the lookup and the head that is
tied to it.

Source: GroupReduce (Chen et al., NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from eckart._factorise import Pair, RowGroups
from eckart.models._factored_layers import FactoredLayer, Int8Linear, Matrix, entries, filled, frozen, matrix, times
from eckart.models._option import Option, group_sizes

__all__ = [
    "FactoredHead",
    "FactoredTable",
    "Int8Table",
    "TiedHead",
    "empty_table",
    "scale_of",
    "tie_head_",
    "tied_head",
]


class FactoredTable(FactoredLayer):
    """An embedding whose row t is row order[t] of [up_0 down_0; up_1 down_1; …]; a group without `down` is dense.

    scale: what the rows are multiplied by where they are looked up, as some models do.
    """

    order: torch.Tensor

    def __init__(
        self,
        rows: int,
        columns: int,
        ranks: Sequence[int],
        *,
        int8: bool = False,
        bias: bool = False,
        scale: float = 1.0,
        **where: Any,
    ) -> None:
        super().__init__(rows, columns)
        self.scale = scale
        self.num_embeddings, self.embedding_dim = rows, columns
        self.sizes = group_sizes(rows)
        for g, (size, k) in enumerate(zip(self.sizes, ranks, strict=True)):
            setattr(self, f"up_{g}", matrix(size, k, int8=int8, **where))
            if k < columns:
                setattr(self, f"down_{g}", matrix(k, columns, int8=int8, **where))
        self.register_buffer("order", torch.empty(rows, dtype=torch.int32, device=where.get("device")))
        self.bias = frozen(torch.empty(rows, **where)) if bias else None

    def groups(self) -> Iterator[tuple[Matrix, Matrix | None]]:
        """Iterate over up (size, k) and down (k, columns), or all of the rows and None."""
        for g in range(len(self.sizes)):
            yield getattr(self, f"up_{g}"), getattr(self, f"down_{g}", None)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        places, start = self.order[indices].long(), 0
        found = None
        for (up, down), size in zip(self.groups(), self.sizes, strict=True):
            inside = (places - start).clamp(0, size - 1)
            rows = up.rows(inside) if isinstance(up, Int8Linear) else functional.embedding(inside, up)
            rows = rows if down is None else rows @ entries(down)
            found = rows if found is None else torch.where((places < start)[..., None], found, rows)
            start += size
        assert found is not None
        return _times_scale(found, self.scale)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (…, columns), times the transpose of the table, (…, rows)."""
        parts = [times(x if down is None else times(x, down), up) for up, down in self.groups()]
        return torch.cat(parts, dim=-1).index_select(-1, self.order)

    @property
    def weight(self) -> torch.Tensor:
        parts = [entries(up) if down is None else entries(up) @ entries(down) for up, down in self.groups()]
        return torch.cat(parts).index_select(0, self.order)

    @property
    def has_bias(self) -> bool:
        return self.bias is not None

    @property
    def further_numbers(self) -> int:
        return self.num_embeddings

    def fill_(self, factors: RowGroups, bias: torch.Tensor | None) -> None:
        """Take the values of the groups, the order of the rows and the bias."""
        for g, part in enumerate(factors.parts):
            for leaf, values in (("up", part.up), ("down", part.down)) if isinstance(part, Pair) else (("up", part),):
                setattr(self, f"{leaf}_{g}", filled(getattr(self, f"{leaf}_{g}"), values))
        self.order = factors.order
        if bias is not None:
            self.bias = frozen(bias)


class FactoredHead(FactoredTable):
    """A head that shares its table with no embedding: y = W x (+ b), W as there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.multiply(x)
        return y if self.bias is None else y + self.bias


class Int8Table(Int8Linear):
    """An embedding in int8, one scale a row. scale: as of FactoredTable."""

    def __init__(self, rows: int, columns: int, *, scale: float = 1.0, **where: Any) -> None:
        super().__init__(columns, rows, bias=False, **where)
        self.num_embeddings, self.embedding_dim, self.scale = rows, columns, scale

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return _times_scale(self.rows(indices), self.scale)


def _times_scale(rows: torch.Tensor, scale: float) -> torch.Tensor:
    return rows if scale == 1 else rows * torch.tensor(scale, dtype=rows.dtype)  # rounded first, as models do


def scale_of(embedding: nn.Module) -> float | None:
    """Return what an embedding multiplies its rows by, None where it does something else with them."""
    if type(embedding).forward is nn.Embedding.forward:
        return 1.0
    if not type(embedding).__name__.endswith("ScaledWordEmbedding"):  # transformers' name for these
        return None
    found: Any = embedding
    return float(getattr(found, "scalar_embed_scale", None) or found.embed_scale)


class TiedHead(nn.Module):
    """logits = table x (+ b), with the tensors of a table, which alone stores them."""

    def __init__(self, table: FactoredTable | Int8Table, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.in_features, self.out_features = table.embedding_dim, table.num_embeddings
        self._table = (table,)  # in a tuple, so that its tensors are not this module's as well
        self.bias = bias  # itself, for it may be another module's as well

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._table[0].multiply(x)
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> torch.Tensor:
        """The matrix, for code that reads a linear layer's weight; writing to it changes nothing."""
        return self._table[0].weight


def empty_table(rows: int, columns: int, option: Option, **where: Any) -> FactoredLayer:
    """Return the table that `option` makes of an embedding, its values still unset."""
    int8 = option.dtype == "int8"
    if option.format == "dense":
        return Int8Table(rows, columns, **where)
    return FactoredTable(rows, columns, option.ranks, int8=int8, **where)


def tied_head(module: Any) -> str:
    """Return the name of the linear layer of a transformers model that multiplies by its input embedding, or ""."""
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    if not isinstance(table, nn.Embedding) or not isinstance(head, nn.Linear):
        return ""
    name: str = next(name for name, found in module.named_modules() if found is head)
    # Without their values, before a checkpoint is read, only the names say what will be tied.
    return name if head.weight is table.weight or f"{name}.weight" in module.all_tied_weights_keys else ""


def tie_head_(module: Any, name: str) -> None:
    """Let the head of this name multiply by the table that is now the model's input embedding."""
    head = module.get_submodule(name)
    module.set_submodule(name, TiedHead(module.get_input_embeddings(), head.bias).train(head.training))
