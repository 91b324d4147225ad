"""A compressed model on disk: it reloads as it was, in transformers' own classes with the plug-in, in none without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import eckart
from eckart.models._safetensors import open_checkpoint

Tiny = Callable[..., Path]
KINDS = ("llama", "untied", "gpt2", "bert")
TOKENS = torch.arange(3, 67)[None] * 5 % 384


@pytest.fixture(scope="module")
def compressed(tiny: Tiny, texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return compressed("llama", …): the model in memory, whose `path` is where it was saved; made once a case."""
    made: dict[Any, Any] = {}

    def get(kind: str, **arguments: Any) -> Any:
        case = (kind, *sorted(arguments.items()))
        if case not in made:
            out = tmp_path_factory.mktemp("out") / "model"
            made[case] = eckart.compress(
                tiny(kind), 0.8, data=texts["train"], tokens=1024, context=64, out=out, **arguments
            )
        return made[case]

    return get


def in_new_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


RELOAD = """
import json, sys
import torch, transformers
import eckart.hf
name, folder, tokens = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
with torch.no_grad():
    output = model(torch.tensor([tokens]))[0]
generated = []
if model.can_generate():
    generated = model.generate(torch.tensor([tokens[:8]]), max_new_tokens=12, do_sample=False)[0].tolist()
tied = model.get_output_embeddings() is not None and (
    model.get_output_embeddings().weight is model.get_input_embeddings().weight
)
orders = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith(".order"))
print(json.dumps({"output": output.flatten().tolist(), "generated": generated, "tied": tied,
                  "class": type(model).__name__, "parameters": model.num_parameters() + orders}))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_reloaded_in_a_fresh_process_it_answers_the_same(compressed: Callable[..., Any], kind: str) -> None:
    small = compressed(kind)
    auto = "AutoModelForMaskedLM" if kind == "bert" else "AutoModelForCausalLM"
    done = in_new_process(RELOAD, auto, small.path, TOKENS[0].tolist())
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout.splitlines()[-1])
    here = small.run(TOKENS).flatten()
    assert float((here - torch.tensor(again["output"])).abs().max()) <= 1e-4
    assert again["class"].startswith("Eckart")
    assert again["tied"] == (kind != "untied")
    assert again["parameters"] == small.parameters == small.plan.parameters_after
    if again["generated"]:
        with torch.no_grad():
            expected = small.module.generate(TOKENS[:, :8], max_new_tokens=12, do_sample=False)[0].tolist()
        assert again["generated"] == expected


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, "float32") for kind in KINDS), ("llama", "float16"), ("gpt2", "bfloat16")]
)
def test_predicted_parameters_and_bytes_are_the_measured_ones(
    compressed: Callable[..., Any], kind: str, dtype: str
) -> None:
    small = compressed(kind, **({} if dtype == "float32" else {"dtype": dtype}))
    files = [file for file in Path(small.path).iterdir() if "safetensors" in file.name]
    assert sum(file.stat().st_size for file in files) == small.plan.bytes_after < small.plan.bytes_before
    stored = open_checkpoint(Path(small.path)).tensors
    assert sum(info.parameters for info in stored.values()) == small.plan.parameters_after
    assert small.plan.parameters_after <= 0.8 * small.plan.parameters_before


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_tied_weight_is_stored_once(compressed: Callable[..., Any], kind: str) -> None:
    shapes = [info.shape for info in open_checkpoint(Path(compressed(kind).path)).tensors.values()]
    assert shapes.count((384, 48)) == 1


@pytest.mark.parametrize("size", ["60kB", "200kB"])
def test_shards_reload(compressed: Callable[..., Any], size: str) -> None:
    small = compressed("llama", max_shard_size=size)
    assert len(list(Path(small.path).glob("eckart-*.safetensors"))) > 1
    done = in_new_process(RELOAD, "AutoModelForCausalLM", small.path, TOKENS[0].tolist())
    again = json.loads(done.stdout.splitlines()[-1])
    assert float((small.run(TOKENS).flatten() - torch.tensor(again["output"])).abs().max()) <= 1e-4


REFUSE = """
import sys, transformers
for name in sys.argv[2:]:
    try:
        model = getattr(transformers, name).from_pretrained(sys.argv[1])
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        print(name, "refused", type(error).__name__)
    else:
        print(name, "LOADED", type(model).__name__)
"""
CLASSES = (
    "AutoModelForCausalLM", "AutoModel", "AutoModelForSequenceClassification", "LlamaForCausalLM", "LlamaModel",
    "LlamaForSequenceClassification", "GPT2LMHeadModel",
)  # fmt: skip


@pytest.mark.parametrize("shards", ["5GB", "60kB"])
def test_without_the_plug_in_every_class_refuses(compressed: Callable[..., Any], shards: str) -> None:
    done = in_new_process(REFUSE, compressed("llama", max_shard_size=shards).path, *CLASSES)
    answers = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert answers.keys() == set(CLASSES), done.stderr
    assert all(answer.startswith("refused") for answer in answers.values()), answers


def test_a_reloaded_model_saves_and_loads_again(compressed: Callable[..., Any], tmp_path: Path) -> None:
    code = (
        "import sys, torch, transformers, eckart.hf\n"
        "m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()\n"
        "m.save_pretrained(sys.argv[2], max_shard_size=sys.argv[3])\n"
        "again = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32).eval()\n"
        "x = torch.arange(3, 40)[None]\n"
        "print(float((m(x).logits - again(x).logits).abs().max()))\n"
    )
    for size in ("5GB", "60kB"):
        folder = tmp_path / size
        done = in_new_process(code, compressed("llama").path, folder, size)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout.splitlines()[-1]) == 0.0
        assert not list(folder.glob("model*"))
    refused = in_new_process(REFUSE, tmp_path / "60kB", "LlamaForCausalLM")
    assert refused.stdout.startswith("LlamaForCausalLM refused"), refused.stdout


def test_the_base_model_of_a_factored_head_loads(compressed: Callable[..., Any]) -> None:
    small = compressed("llama")
    code = (
        "import sys, torch, transformers, eckart.hf\n"
        "m = transformers.AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32).eval()\n"
        "print(type(m).__name__, float(m(torch.arange(3, 40)[None])[0].double().square().sum()))\n"
    )
    done = in_new_process(code, small.path)
    name, norm = done.stdout.split()
    with torch.no_grad():
        expected = float(small.module.model(torch.arange(3, 40)[None])[0].double().square().sum())
    assert name == "EckartLlamaModel"
    assert float(norm) == pytest.approx(expected, rel=1e-5)


def test_a_dense_checkpoint_is_an_ordinary_one(compressed: Callable[..., Any]) -> None:
    for kind in ("llama", "gpt2"):
        small = compressed(kind, format="dense")
        config = json.loads((Path(small.path) / "config.json").read_text())
        assert config["model_type"] == kind
        done = in_new_process(RELOAD.replace("import eckart.hf", ""), "AutoModelForCausalLM", small.path, [5, 6, 7])
        again = json.loads(done.stdout.splitlines()[-1])
        here = small.run(torch.tensor([[5, 6, 7]])).flatten()
        assert float((here - torch.tensor(again["output"])).abs().max()) <= 1e-4
        assert small.plan.options, "nothing was approximated"
        assert small.input_bytes == small.plan.bytes_before
        assert small.parameters == small.plan.parameters_before


def test_the_folder_brings_what_a_user_needs(compressed: Callable[..., Any], tiny: Tiny) -> None:
    small = compressed("llama")
    there, source = Path(small.path), tiny("llama")
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (there / file).read_bytes() == (source / file).read_bytes()
    card = (there / "README.md").read_text()
    assert card.startswith("---\nbase_model: ")
    assert f"{small.plan.parameters_after:,}" in card
    assert eckart.Plan.load(there / "eckart_plan.json").to_json() == small.plan.to_json()
    assert str(source.parent) not in card + (there / "config.json").read_text() + small.plan.model
