"""A table of rows, looked up in by index and perhaps multiplied by as well, stored as groups of rows with own ranks.

Frequent rows come first and keep more. One set of tensors serves the lookup and the head that is tied to it.

Source: GroupReduce (Chen et al., NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from eckart._factorise import Pair, RowGroups
from eckart.models._factored_layers import FactoredLayer, frozen
from eckart.models._option import Option, group_sizes

__all__ = ["FactoredTable", "TiedHead", "fill_table", "tie_head_", "tied_head"]


class FactoredTable(FactoredLayer):
    """An embedding whose row t is row order[t] of [up_0 down_0; up_1 down_1; …]; a group without `down` is dense."""

    order: torch.Tensor

    def __init__(self, rows: int, columns: int, ranks: Sequence[int], **where: Any) -> None:
        super().__init__(rows, columns)
        self.num_embeddings, self.embedding_dim = rows, columns
        self.sizes = group_sizes(rows)
        for g, (size, k) in enumerate(zip(self.sizes, ranks, strict=True)):
            self.register_parameter(f"up_{g}", frozen(torch.empty(size, k, **where)))
            if k < columns:
                self.register_parameter(f"down_{g}", frozen(torch.empty(k, columns, **where)))
        self.register_buffer("order", torch.empty(rows, dtype=torch.int32, device=where.get("device")))

    def groups(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Iterate over up (size, k) and down (k, columns), or all of the rows and None."""
        for g in range(len(self.sizes)):
            yield getattr(self, f"up_{g}"), getattr(self, f"down_{g}", None)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        places, start = self.order[indices].long(), 0
        found = None
        for (up, down), size in zip(self.groups(), self.sizes, strict=True):
            rows = functional.embedding((places - start).clamp(0, size - 1), up)
            rows = rows if down is None else rows @ down
            found = rows if found is None else torch.where((places < start)[..., None], found, rows)
            start += size
        assert found is not None
        return found

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (…, columns) times the transpose of the table, (…, rows)."""
        parts = [functional.linear(x if down is None else functional.linear(x, down), up) for up, down in self.groups()]
        return torch.cat(parts, dim=-1).index_select(-1, self.order)

    @property
    def weight(self) -> torch.Tensor:
        return torch.cat([up if down is None else up @ down for up, down in self.groups()]).index_select(0, self.order)

    @property
    def has_bias(self) -> bool:
        return False

    @property
    def further_numbers(self) -> int:
        return self.num_embeddings


class TiedHead(nn.Module):
    """logits = table x (+ b), with the tensors of a FactoredTable, which alone stores them."""

    def __init__(self, table: FactoredTable, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = table.embedding_dim, table.num_embeddings
        self._table = (table,)  # in a tuple, so that its tensors are not this module's as well
        self.bias = None if bias is None else frozen(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._table[0].multiply(x)
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> torch.Tensor:
        """The matrix, for code that reads a linear layer's weight; writing to it changes nothing."""
        return self._table[0].weight


def fill_table(module: nn.Embedding, option: Option, groups: RowGroups | None, device: Any = None) -> FactoredTable:
    """Return the table that `option` makes of an embedding; without groups its values are still unset."""
    like = module.weight
    rows, columns = like.shape
    new = FactoredTable(rows, columns, option.ranks, device="meta", dtype=like.dtype)
    if groups is None:
        return new.to_empty(device=device or like.device)
    for g, part in enumerate(groups.parts):
        up = part.up if isinstance(part, Pair) else part
        setattr(new, f"up_{g}", frozen(up.to(like)))
        if isinstance(part, Pair):
            setattr(new, f"down_{g}", frozen(part.down.to(like)))
    new.order = groups.order.to(like.device)
    return new.train(module.training)


def tied_head(module: Any) -> str:
    """Return the name of the linear layer of a transformers model that multiplies by its input embedding, or ""."""
    table, head = module.get_input_embeddings(), module.get_output_embeddings()
    if not isinstance(table, nn.Embedding) or not isinstance(head, nn.Linear):
        return ""
    name: str = next(name for name, found in module.named_modules() if found is head)
    # Without their values, before a checkpoint is read, only the names say what will be tied.
    return name if head.weight is table.weight or f"{name}.weight" in module.all_tied_weights_keys else ""


def tie_head_(module: Any, name: str) -> None:
    """Let the head of this name multiply by the factored table that is now the model's input embedding."""
    head = module.get_submodule(name)
    module.set_submodule(name, TiedHead(module.get_input_embeddings(), head.bias).train(head.training))
