"""Results as `compare` and `compress` write them, schema "eckart.compare/1", made up for the tests of the report."""

from __future__ import annotations

import hashlib
import random
from typing import Any

HOSTILE = "evil</script><img src=x onerror=alert(1)></script \" onload='alert(2)' \x1b[31m\u202e\u2028&amp;.7.q_proj"
KINDS = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
FIXED = 28_318_848 + 35_136  # parameters outside the layers: embedding and norms


def result(
    blocks: int = 30, *, plan: bool = True, grown: bool = True, speed: bool = True, models: int = 3
) -> dict[str, Any]:
    """Return a result about a network of the shape of SmolLM2-135M with this many blocks; always the same."""
    layers = [layer for block in range(blocks) for layer in _block(block)]
    before = FIXED + sum(layer["params_before"] for layer in layers)
    after = FIXED + sum(layer["params"] for layer in layers)
    source = int(before * 5.85 / 8) if grown else 2 * before + 70_000
    texts = {"bbc-test.txt": (23.104, 29.913, 412.77), "pydoc.txt": (14.482, 21.067, 1388.2)}
    settings = {"prefill_tokens": 256, "decode_tokens": 32, "runs": 7, "dtype": "float32"}
    rates = {
        "prefill": ((901.3, 1.0), (955.2, 1.06), (949.0, 1.05)),
        "decode": ((31.7, 1.0), (30.9, 0.975), (31.9, 1.0)),
    }

    def model(i: int) -> dict[str, Any]:
        label, path, parameters = (
            ("dense", "/data/SmolLM2-135M-Instruct.Q4_K_M.gguf", before),
            ("eckart", "small", after),
            ("plain", "plain", after),
        )[i]
        return {
            "label": label,
            "path": path,
            "model_type": "llama" if i == 0 else "eckart_llama",
            "dtype": "float16",
            "parameters": parameters,
            "file_bytes": 2 * parameters + 70_000,
            "file_bytes_note": "if saved as safetensors in float16" if i == 0 else "",
            "input_bytes": source if i == 0 else 2 * parameters + 70_000,
            "quality": {name: quality(values, i) for name, values in texts.items()},
            **{kind: spread(*found[i], i) if speed else None for kind, found in rates.items()},
        }

    def quality(values: tuple[float, ...], i: int) -> dict[str, Any]:
        compared = {"kl": 0.118 * i, "top1_agreement": 0.8312 / i} if i else {"kl": None, "top1_agreement": None}
        return {"tokens": 4096, "perplexity": values[i], **compared, "relative_error": None}

    return {
        "schema": "eckart.compare/1",
        "eckart": "0.1.0",
        "created": "2026-11-23T20:00:00Z",
        "command": "eckart compress '/data/SmolLM2-135M-Instruct.Q4_K_M.gguf' --keep 0.8 --data bbc-train.txt "
        "--evaluate bbc-test.txt --evaluate pydoc.txt --beside plain -o small",
        "seed": 0,
        "machine": {
            "cpu": "AMD EPYC 7763 64-Core Processor",
            "cores": 2,
            "threads": 2,
            "gflops_float32": 137.1 if speed else None,
            "device": "cpu",
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"},
        "texts": [
            {"name": name, "tokens": 4096, "context": 512, "sha256": hashlib.sha256(name.encode()).hexdigest()}
            for name in texts
        ],
        "speed_settings": settings if speed else None,
        "models": [model(i) for i in range(models)],
        "plan": _plan(layers, before, after) if plan else None,
        "warnings": ["the calibration text is shorter than asked for: 6,144 of 8,192 tokens"],
    }


def spread(median: float, ratio: float, i: int) -> dict[str, Any]:
    """Return a speed with quartiles 4 % to either side; those of the ratio of models after the first, 3 %."""
    ratios = [0.97 * ratio, ratio, 1.03 * ratio] if i else None
    return {"median": median, "low": 0.96 * median, "high": 1.04 * median, "runs": 7, "ratio": ratios}


def layer(
    name: str, rows: int, columns: int, rank: int | None, *, loss: float | None = 0.001, kept: str = ""
) -> dict[str, Any]:
    dense = rows * columns
    params = dense if rank is None else rank * (rows + columns)
    option = {"version": 1, "format": "dense" if rank is None else "pair", "ranks": [] if rank is None else [rank]}
    return {
        "name": name,
        "rows": rows,
        "columns": columns,
        "bias": False,
        "kept": kept,
        "option": {**option, "dtype": "float16"},
        "planned_ranks": option["ranks"],
        "planned_dtype": "float16",
        "params": params,
        "params_before": dense,
        "bytes": 2 * params,
        "break_even_rank": dense / (rows + columns),
        "loss_increase": loss if rank else 0.0,
        "relative_error": 0.03 if rank else 0.0,
    }


def _block(block: int) -> list[dict[str, Any]]:
    draw = random.Random(block)
    layers = []
    for kind, (rows, columns) in KINDS.items():
        rank: int | None = round(rows * columns / (rows + columns) * min(1.0, draw.gauss(0.72, 0.16)) / 8) * 8
        name = f"model.layers.{block}.{kind}"
        if draw.random() < 0.2:
            rank = None
        layers.append(layer(name, rows, columns, rank, loss=draw.lognormvariate(-7, 1)))
    return layers


def _plan(layers: list[dict[str, Any]], before: int, after: int) -> dict[str, Any]:
    return {
        "schema": "eckart.plan/1",
        "model": "SmolLM2-135M-Instruct.Q4_K_M.gguf",
        "method": "two-sided",
        "keep": 0.8,
        "size": None,
        "max_loss_increase": None,
        "cost": "params",
        "dtype": "float16",
        "seed": 0,
        "unit": "nats a token",
        "layers": layers,
        "parameters_before": before,
        "parameters_after": after,
        "bytes_before": 2 * before + 70_000,
        "bytes_after": 2 * after + 70_000,
        "keep_reached": after / before,
        "predicted_loss_increase": sum(layer["loss_increase"] for layer in layers),
    }
