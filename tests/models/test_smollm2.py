"""A real trained network: SmolLM2-135M-Instruct, grouped queries, tied embeddings, from a 4-bit GGUF file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import eckart
from eckart.models._inspect import inspect

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not os.environ.get("ECKART_CACHE"):
        os.environ["ECKART_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return eckart.open_model(smollm2_gguf)


def test_it_is_what_its_header_says(model: Any, smollm2_gguf: Path) -> None:
    assert model.parameters == inspect(smollm2_gguf).parameters == 134_515_008
    layers = model.layers()
    assert len(model.blocks()) == 30
    assert layers["lm_head"].kept == "tied to model.embed_tokens"
    assert layers["model.layers.3.self_attn.k_proj"].rows == 192
    assert len([layer for layer in layers.values() if not layer.kept]) == 210 + 1
    assert [name for name, layer in layers.items() if layer.table] == ["model.embed_tokens"]
    assert (model.quantised, model.stored_dtype, model.licence) == (True, "float16", "apache-2.0")


def test_it_knows_the_capital_of_france(model: Any) -> None:
    tokens = torch.tensor([model.tokenizer("The capital of France is")["input_ids"]])
    assert model.tokenizer.decode(model.run(tokens)[0, -1].argmax()).strip() == "Paris"


def test_opened_again_from_the_cache_it_is_the_same(model: Any, smollm2_gguf: Path) -> None:
    again: Any = eckart.open_model(smollm2_gguf)
    assert again.path == model.path == str(smollm2_gguf)
    assert again.input_bytes == smollm2_gguf.stat().st_size
    here, there = dict(model.tensors()), dict(again.tensors())
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_every_layer_at_full_rank_changes_no_logit(model: Any, texts: dict[str, Path]) -> None:
    calibration: dict[str, Any] = {"data": texts["train"], "tokens": 512, "context": 256}
    value = eckart.plan(model, 1.0, method="plain", dtype="float32", layers="*layers.0.*").to_json()
    for layer in value["layers"]:
        if layer["kept"] in ("", "excluded by layers="):
            layer["option"] |= {"format": "pair", "ranks": [min(layer["rows"], layer["columns"])], "dtype": "float32"}
    full = eckart.Plan.from_json(value | {"method": "two-sided"})
    assert len(full.options) == 210
    same = eckart.compress(model, plan=full, **calibration)
    tokens = torch.tensor([model.tokenizer(texts["test"].read_text()[:2000])["input_ids"]])
    before, after = model.run(tokens), same.run(tokens)
    assert float((after - before).abs().max()) <= 2000 * EPS * float(before.abs().max())
    json.dumps(full.to_json())
