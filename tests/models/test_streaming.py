"""A model whose blocks wait in their files is the model in memory: the same tensors, outputs and compressed files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import eckart
from eckart.errors import InputError, NumericalError
from eckart.models._save_huggingface import save

Tiny = Callable[..., Path]
KINDS = ("llama", "untied", "gpt2", "bert")
TOKENS = torch.arange(3, 67)[None] * 5 % 384


def both(folder: Path) -> tuple[Any, Any]:
    return eckart.open_model(folder), eckart.open_model(folder, stream=True)


def is_same(whole: Any, streamed: Any) -> bool:
    """Whether a streamed model has the tensors, the facts and the outputs of the one in memory."""
    here, there = dict(whole.tensors()), dict(streamed.tensors())
    assert list(here) == list(there)
    assert all(torch.equal(here[name], streamed.shelf.value(there[name])) for name in here)
    for name, buffer in whole.module.named_buffers():
        assert torch.equal(buffer, streamed.module.get_buffer(name)), name
    assert (whole.layers(), whole.blocks()) == (streamed.layers(), streamed.blocks())
    assert whole.parameters == streamed.parameters
    return torch.equal(whole.run(TOKENS), streamed.run(TOKENS))


def waiting(model: Any) -> set[str]:
    return {name for name, parameter in model.module.named_parameters() if parameter.device.type == "meta"}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_model_in_memory_and_its_blocks_wait(tiny: Tiny, kind: str) -> None:
    whole, streamed = both(tiny(kind))
    in_blocks = {
        name for name, _ in whole.module.named_parameters() if name.startswith(tuple(f"{b}." for b in whole.blocks()))
    }
    assert waiting(streamed) == in_blocks != set()
    assert is_same(whole, streamed)
    assert waiting(streamed) == in_blocks  # and wait again once they have run
    name = next(name for name in streamed.layers() if name.startswith(streamed.blocks()[1]))
    assert torch.equal(whole.weight(name), streamed.weight(name))
    weights = {weight.name: weight for weight in streamed.weights()}
    assert all((weights[weight.name].read() == weight.read()).all() for weight in whole.weights())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_it_is_in_float32_whatever_the_files_hold(tiny: Tiny, tmp_path: Path, dtype: str) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert is_same(*both(tmp_path))


def renamed(folder: Path, out: Path, rename: Callable[[str], str]) -> Path:
    """Write the checkpoint again as files that name their tensors in another way."""
    out.mkdir()
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_names_that_transformers_changes_lead_to_the_same_tensors(tiny: Tiny, tmp_path: Path) -> None:
    bare = renamed(tiny("gpt2"), tmp_path / "bare", lambda name: name.removeprefix("transformer."))
    assert is_same(*both(bare))
    assert is_same(eckart.open_model(tiny("gpt2")), eckart.open_model(bare, stream=True))
    old = renamed(
        tiny("bert"),
        tmp_path / "old",
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
    )
    assert is_same(eckart.open_model(tiny("bert")), eckart.open_model(old, stream=True))


def test_a_tensor_that_is_not_there_is_an_error(tiny: Tiny, tmp_path: Path) -> None:
    broken = renamed(tiny("untied"), tmp_path / "broken", lambda name: name.replace("1.mlp.up_proj", "1.mlp.up"))
    with pytest.raises(InputError, match=r"lacks 1 tensors .* model\.layers\.1\.mlp\.up_proj\.weight"):
        eckart.open_model(broken, stream=True)


def test_weights_that_are_merged_in_memory_are_loaded_whole_and_it_says_so(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    size = {"vocab_size": 384, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64}
    config = transformers.MixtralConfig(**size, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "model")
    whole, streamed = both(tmp_path / "model")
    assert not waiting(streamed)
    assert "another form" in streamed.whole
    assert whole.whole == ""
    assert is_same(whole, streamed)
    stages: list[str] = []
    eckart.plan(tmp_path / "model", 0.9, method="plain", progress=lambda stage, *_: stages.append(stage))
    assert any("all its weights are in memory" in stage for stage in stages)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {"dtype": "float16"}),
        ("gpt2", {}),
        ("untied", {"format": "dense", "dtype": "bfloat16"}),
        ("llama", {"storage": "pifa", "correct": True}),
        ("untied", {"method": "lems"}),
    ],
)
def test_the_files_are_those_of_a_compression_in_memory(
    tiny: Tiny, texts: dict[str, Path], tmp_path: Path, kind: str, more: dict[str, Any]
) -> None:
    job: dict[str, Any] = {"data": texts["train"], "tokens": 512, "context": 64, **more}
    whole, streamed = tmp_path / "whole", tmp_path / "streamed"
    here = eckart.compress(eckart.open_model(tiny(kind)), 0.75, **job)
    there = eckart.compress(tiny(kind), 0.75, out=streamed, **job)
    whole.mkdir()
    save(here, whole, dtype=here.plan.dtype, max_shard_bytes=5_000_000_000)
    here.plan.save(whole / "eckart_plan.json")
    expected = contents(whole)
    assert any(name.endswith(".safetensors") for name in expected)
    assert contents(streamed).items() >= expected.items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streamed", "whole"]
    assert "module" not in vars(there), "nothing is in memory before it is used"
    assert (there.path, there.plan, there.replaced) == (str(streamed), here.plan, here.replaced)
    assert torch.equal(here.run(TOKENS), there.run(TOKENS))
    assert there.parameters == here.parameters
    assert is_same(*both(streamed))
    again = eckart.plan(tiny(kind), 0.75, **{name: job[name] for name in job if name != "format"})
    assert again == there.plan


def test_a_weight_too_large_for_half_precision_is_an_error_and_leaves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    tensors = load_file(tiny("llama") / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"][3] = 1e5
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_bytes((tiny("llama") / "config.json").read_bytes())
    save_file(tensors, tmp_path / "large" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match="more than float16 can hold"):
        eckart.compress(tmp_path / "large", 0.8, method="plain", dtype="float16", out=tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_files_that_are_not_what_was_saved_are_noticed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check before the folder gets its name compares two roads to the weights: the shelf, and the saved files."""
    from eckart._compress import _finish

    def damage(model: Any, folder: Path, **more: Any) -> int:
        written = save(model, folder, **more)
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        name = "model.layers.2.mlp.down_proj.up.weight"
        tensors[name] = tensors[name].roll(1)
        save_file(tensors, file, metadata={"format": "pt"})
        return written

    monkeypatch.setattr(_finish, "save", damage)
    with pytest.raises(eckart.errors.EckartError, match="reloaded in a fresh process"):
        eckart.compress(tiny("llama"), 0.6, method="plain", out=tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_a_generation_config_is_read(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    renamed(tiny("llama"), folder, lambda name: name)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "do_sample": True}))
    whole, streamed = both(folder)
    assert whole.module.generation_config.to_dict() == streamed.module.generation_config.to_dict()
    assert streamed.module.generation_config.temperature == 0.3
