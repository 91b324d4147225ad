"""nn.MultiheadAttention with its projections as layers of their own, which can be listened to and factored."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from eckart.models._factored_layers import FactorPair

__all__ = ["Attention", "reason_to_keep_attention"]


def reason_to_keep_attention(module: nn.MultiheadAttention) -> str:
    """Return why an attention cannot be factored, or ""."""
    if type(module) is not nn.MultiheadAttention:
        return f"{type(module).__name__} has a forward of its own"
    if not module._qkv_same_embed_dim:
        return "its keys or values have a width of their own"
    return "it adds a key and value of its own" if module.bias_k is not None or module.add_zero_attn else ""


class Attention(nn.Module):
    """softmax(q kᵀ / √d) v of the projections [q; k; v] = in_proj x, and out_proj of that, as nn.MultiheadAttention.

    Layers of torch that would bypass it, and read the weights of an nn.MultiheadAttention instead, do not.
    """

    def __init__(self, like: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = like.embed_dim, like.num_heads, like.head_dim
        self.batch_first, self.dropout = like.batch_first, like.dropout
        self._qkv_same_embed_dim = False  # which nn.TransformerEncoderLayer asks before it bypasses its parts
        weight, bias = like._parameters["in_proj_weight"], like._parameters["in_proj_bias"]
        where: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
        self.in_proj = nn.Linear(like.embed_dim, 3 * like.embed_dim, **where)
        self.in_proj.weight, self.in_proj.bias = cast("Any", weight), cast("Any", bias)
        self.out_proj = nn.Linear(like.embed_dim, like.embed_dim, **where)
        self.out_proj.weight, self.out_proj.bias = like.out_proj.weight, like.out_proj.bias
        self.train(like.training)

    @property
    def in_proj_weight(self) -> torch.Tensor:
        return self.in_proj.weight

    @property
    def in_proj_bias(self) -> torch.Tensor | None:
        return self.in_proj.bias

    @property
    def factored(self) -> bool:
        return not all(type(part) is nn.Linear for part in (self.in_proj, self.out_proj))

    def original(self) -> nn.MultiheadAttention:
        """Return torch's own layer with these weights, neither of which is factored."""
        made = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, self.dropout, bias=self.in_proj.bias is not None,
            batch_first=self.batch_first, device="meta",
        )  # fmt: skip
        made._parameters |= {f"in_proj_{leaf}": self.in_proj._parameters[leaf] for leaf in ("weight", "bias")}
        made.out_proj.weight, made.out_proj.bias = self.out_proj.weight, self.out_proj.bias
        return made.train(self.training)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what nn.MultiheadAttention does of the same arguments."""
        batched, itself = query.ndim == 3, query is key and key is value
        given = [query] if itself else [query, key, value]
        if not batched:
            given = [one.unsqueeze(0) for one in given]
        elif not self.batch_first:
            given = [one.transpose(0, 1) for one in given]
        parts = self._projected(given)
        q, k, v = (one.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for one in parts)
        mask = _mask(q, k, attn_mask, key_padding_mask)
        rate, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = q @ k.mT / self.head_dim**0.5
            weights = (scores if mask is None else scores + mask).softmax(dim=-1)
            attended = functional.dropout(weights, rate) @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            attended = functional.scaled_dot_product_attention(q, k, v, mask, rate)
        y: torch.Tensor = self.out_proj(attended.transpose(1, 2).flatten(-2))
        if not batched:
            return y.squeeze(0), weights
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _projected(self, given: list[torch.Tensor]) -> list[torch.Tensor]:
        if len(given) == 1:
            return list(self.in_proj(given[0]).chunk(3, dim=-1))
        if isinstance(self.in_proj, FactorPair):  # of each only its own third is multiplied by
            up, bias = self.in_proj.up.weight.chunk(3), self.in_proj.up.bias
            biases = [None] * 3 if bias is None else bias.chunk(3)
            return [functional.linear(self.in_proj.down(one), up[i], biases[i]) for i, one in enumerate(given)]
        return [self.in_proj(one).chunk(3, dim=-1)[i] for i, one in enumerate(given)]  # so that it can be listened to


def _mask(
    q: torch.Tensor, k: torch.Tensor, attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """Return what is added to the scores, (batch or 1, heads or 1, queries, keys), of masks as torch takes them: True
    for what must not be seen, or numbers to be added. Without a mask is_causal, a hint, changes nothing.
    """
    whole: torch.Tensor | None = None
    if attn_mask is not None:
        whole = _added(attn_mask, q)
        whole = whole if whole.ndim == 2 else whole.reshape(len(q), -1, *whole.shape[1:])
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, q).reshape(len(k), 1, 1, -1)
        whole = padding if whole is None else whole + padding
    return whole


def _added(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
