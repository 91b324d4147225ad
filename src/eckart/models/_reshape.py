"""Ordinary models of another shape: with fewer blocks, or with a narrower residual stream."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from eckart.errors import InputError
from eckart.models._huggingface import HuggingFaceModel

__all__ = ["narrowed", "stream_norms", "without_blocks"]


def without_blocks(model: HuggingFaceModel, names: Sequence[str]) -> HuggingFaceModel:
    """Return a model that lacks these of its blocks; the others keep their order and their weights."""
    blocks = model.blocks()
    kept = [i for i, name in enumerate(blocks) if name not in names]
    config = copy.deepcopy(model.module.config)
    config.num_hidden_layers = len(kept)
    for key, value in config.to_dict().items():
        if isinstance(value, list) and "layer" in key and len(value) == len(blocks):  # such as layer_types
            setattr(config, key, [value[i] for i in kept])
    renamed = {f"{blocks[i]}.": f"{blocks[place]}." for place, i in enumerate(kept)}
    gone = tuple(f"{name}." for name in names)
    state = {
        _renamed(name, renamed): tensor
        for name, tensor in model.module.state_dict().items()
        if not name.startswith(gone)
    }
    return _rebuilt(model, config, state)


def narrowed(model: HuggingFaceModel, rotation: torch.Tensor) -> HuggingFaceModel:
    """Return a model of the Llama family whose residual stream is x Q, Q = `rotation`, (n, h), of orthonormal columns.

    Q goes into every matrix that reads or writes the stream, and the weights of the norms into those that read it: a
    norm without weights commutes with a rotation, so that at h = n the outputs stay the same. The embedding and a head
    that was tied to it differ then, and are both stored. InputError: the model is not of this form.

    Source: SliceGPT (Ashkboos et al., ICLR 2024), which has a rotation of its own for every block.
    """
    n, h = rotation.shape
    state, q = dict(model.module.state_dict()), rotation.double()
    root = math.sqrt(n / h)  # the norm is over h entries now, whose squares add up to nearly what the n did
    for norm, readers in _readers(model).items():
        for name in readers:
            state[f"{name}.weight"] = state[f"{name}.weight"].double() * state[f"{norm}.weight"].double() @ q
        state[f"{norm}.weight"] = torch.full((h,), root)
    for name in (f"{writer}.{leaf}" for writer in _writers(model) for leaf in ("weight", "bias")):
        if name in state:
            state[name] = q.T @ state[name].double()
    table = next(name for name, m in model.module.named_modules() if m is model.module.get_input_embeddings())
    state[f"{table}.weight"] = state[f"{table}.weight"].double() @ q
    config = copy.deepcopy(model.module.config)
    heads = config.num_attention_heads
    config.head_dim = getattr(config, "head_dim", None) or n // heads
    config.hidden_size, config.tie_word_embeddings = h, False
    config.rms_norm_eps = config.rms_norm_eps * n / h
    return _rebuilt(model, config, state)


def stream_norms(model: HuggingFaceModel) -> list[str]:
    """Return the names of the norms through which everything reads the residual stream; InputError as in `narrowed`."""
    return list(_readers(model))


_NORMS = {  # of a block, and what reads it
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def _readers(model: HuggingFaceModel) -> dict[str, list[str]]:
    found = {
        f"{block}.{norm}": [f"{block}.{reader}" for reader in readers]
        for block in model.blocks()
        for norm, readers in _NORMS.items()
    }
    there = dict(model.module.named_modules())
    head = next((name for name, m in there.items() if m is model.module.get_output_embeddings()), "")
    stem = model.blocks()[0].rpartition(".layers.")[0] if model.blocks() else ""
    found[f"{stem}.norm"] = [head]
    linear = [*(name for some in found.values() for name in some), *_writers(model)]
    others = {name for name, m in there.items() if isinstance(m, nn.Linear)} - set(linear)
    fine = all(isinstance(there.get(name), nn.Linear) for name in linear) and all(
        type(there.get(name)).__name__.endswith("RMSNorm") for name in found
    )
    if not fine or others or not hasattr(model.module.config, "rms_norm_eps"):
        raise InputError(
            f"{type(model.module).__name__} cannot be narrowed: that takes the form of a Llama, with RMS norms",
            fix="another method",
            code="E-architecture",
        )
    return found


def _writers(model: HuggingFaceModel) -> list[str]:
    return [f"{block}.{writer}" for block in model.blocks() for writer in _WRITERS]


def _rebuilt(model: HuggingFaceModel, config: Any, state: Mapping[str, torch.Tensor]) -> HuggingFaceModel:
    """Return a model of the same class with this config and these values."""
    like = model.module
    fresh = type(like)(config)
    fresh.load_state_dict({name: tensor.to(like.dtype) for name, tensor in state.items()})
    fresh.tie_weights()
    if like.can_generate():
        fresh.generation_config = copy.deepcopy(like.generation_config)
    twin = copy.copy(model)
    twin.module, twin.replaced = fresh.to(like.device).eval().requires_grad_(False), {}
    return twin


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    return next((new + name.removeprefix(old) for old, new in prefixes.items() if name.startswith(old)), name)
