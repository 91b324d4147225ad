"""What `inspect` says of a model, against what is known of it, and what it and the doctor import to say it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from eckart.cli import _doctor
from eckart.cli import _inspect as inspect_cli
from eckart.errors import InputError, UsageError
from eckart.models._inspect import Inspection, inspect
from eckart.models._safetensors import PendingTensor, write_sharded
from eckart.models._source import resolve

LLAMA = {
    "model.embed_tokens.weight": (100, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.self_attn.k_proj.weight": (8, 16),
    "model.layers.0.self_attn.q_proj.bias": (16,),
    "model.layers.0.mlp.up_proj.weight": (48, 16),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.norm.weight": (16,),
    "lm_head.weight": (100, 16),
}
MATRICES = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.up_proj.weight"]


def make(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    config: dict[str, Any] | None = None,
    *,
    dtype: str = "float32",
    stem: str = "model",
) -> Path:
    folder.mkdir(exist_ok=True)
    pending = [PendingTensor.of(name, np.zeros(shape, dtype)) for name, shape in shapes.items()]
    write_sharded(folder, pending, stem=stem, max_shard_bytes=4000)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def llama(**changes: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1, **changes}


def without(shapes: dict[str, tuple[int, ...]], name: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in shapes.items() if key != name}


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes.values())


def test_a_folder_is_described(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", LLAMA, llama(tie_word_embeddings=False))
    (folder / "README.md").write_text("---\ntags: [x]\nlicense: 'mit'\n---\n# Card\n")
    found = inspect(folder)
    assert (found.kind, found.architecture, found.model_type) == ("huggingface", "LlamaForCausalLM", "llama")
    assert (found.blocks, found.licence, found.remote_code) == (1, "mit", False)
    assert found.parameters == count(LLAMA)
    assert {tensor.name: tensor.shape for tensor in found.tensors} == LLAMA
    assert found.bytes == sum(p.stat().st_size for p in folder.iterdir() if p.name not in ("config.json", "README.md"))
    assert found.files == len(list(folder.glob("*.safetensors"))) > 1
    assert found.dtypes == {"F32": count(LLAMA)}
    assert found.tied == ()
    assert [m.name for m in found.matrices] == [*(f"model.layers.0.{name}" for name in MATRICES), "lm_head.weight"]


def test_break_even_is_the_rank_below_which_a_pair_is_smaller(tmp_path: Path) -> None:
    for matrix in inspect(make(tmp_path / "m", LLAMA)).matrices:
        m, n = matrix.rows, matrix.columns
        assert (m, n) == LLAMA[matrix.name]
        for k in range(1, min(m, n) + 1):
            assert (k * (m + n) < m * n) == (k < matrix.break_even_rank)
        assert matrix.share == m * n / count(LLAMA)


@pytest.mark.parametrize(
    ("stored_head", "said", "tied"),
    [
        (False, True, True),
        (False, None, True),  # a model that needs a head and stores none
        (False, False, False),
        (True, True, True),  # stored twice, counted once
        (True, None, False),
        (True, False, False),
    ],
)
def test_tied_weights_are_known_from_the_config_and_count_once(tmp_path: Path, stored_head, said, tied) -> None:
    shapes = LLAMA if stored_head else without(LLAMA, "lm_head.weight")
    config = llama() if said is None else llama(tie_word_embeddings=said)
    found = inspect(make(tmp_path / "m", shapes, config))
    assert found.tied == ((("model.embed_tokens.weight", "lm_head.weight"),) if tied else ())
    assert found.parameters == count(shapes) - (1600 if tied and stored_head else 0)
    assert sum(found.dtypes.values()) == found.parameters
    assert ("lm_head.weight" in [m.name for m in found.matrices]) == (stored_head and not tied)


def test_a_model_without_a_head_is_tied_to_nothing(tmp_path: Path) -> None:
    shapes = {"embeddings.word_embeddings.weight": (9, 4), "encoder.layer.0.output.dense.weight": (4, 4)}
    config = {"architectures": ["BertModel"], "model_type": "bert", "tie_word_embeddings": True}
    assert inspect(make(tmp_path / "m", shapes, config)).tied == ()


def test_the_text_model_of_a_larger_one_is_asked_too(tmp_path: Path) -> None:
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"tie_word_embeddings": True}}
    config["text_config"]["num_hidden_layers"] = 7
    found = inspect(make(tmp_path / "m", without(LLAMA, "lm_head.weight"), config))
    assert found.blocks == 7
    assert len(found.tied) == 1


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "is_matrix"),
    [
        ("h.0.attn.c_attn.weight", (4, 12), "float32", True),
        ("time_embedding.linear_1.weight", (4, 4), "float32", True),
        ("embed_out.weight", (9, 4), "float32", True),
        ("self_attn.in_proj_weight", (12, 4), "float32", True),
        ("W", (4, 5), "float64", True),
        ("wte.weight", (9, 4), "float32", False),
        ("wpe.weight", (9, 4), "float32", False),
        ("bert.embeddings.token_type_embeddings.weight", (2, 4), "float32", False),
        ("encoder.relative_attention_bias.weight", (8, 4), "float32", False),
        ("shared.weight", (9, 4), "float32", False),
        ("ln_f.weight", (4, 4), "float32", False),
        ("q_norm.weight", (2, 4), "float32", False),
        ("q_proj.bias", (2, 4), "float32", False),
        ("mixer.A_log", (4, 4), "float32", False),
        ("q_proj.weight_scale_inv", (4, 4), "float32", False),
        ("q_proj.qweight", (4, 4), "int32", False),
        ("gate.weight", (1, 4), "float32", False),
        ("conv.weight", (4, 4, 3), "float32", False),
        ("q_proj.weight", (4,), "float32", False),
    ],
)
def test_which_tensors_count_as_matrices(tmp_path: Path, name: str, shape, dtype: str, is_matrix: bool) -> None:
    folder = make(tmp_path / "m", {name: shape, "other.bias": (3,)}, dtype=dtype)
    assert [m.name for m in inspect(folder).matrices] == ([name] if is_matrix else [])


def factored(**changes: Any) -> dict[str, Any]:
    option = {"version": 1, "format": "pair", "ranks": [3], "dtype": "float32"}
    layers = {"model.layers.0.mlp.up_proj": option, "model.layers.0.self_attn.q_proj": {**option, "format": "dense"}}
    return llama(model_type="eckart_llama", eckart={"version": 1, "layers": layers}, **changes)


def test_a_factored_folder_shows_its_pairs_as_the_layers_that_they_are(tmp_path: Path) -> None:
    pair = {"model.layers.0.mlp.up_proj.up.weight": (48, 3), "model.layers.0.mlp.up_proj.down.weight": (3, 16)}
    shapes = {**without(LLAMA, "model.layers.0.mlp.up_proj.weight"), **pair}
    found = inspect(make(tmp_path / "m", shapes, factored(), stem="eckart"))
    assert found.kind == "eckart"
    assert resolve(tmp_path / "m").is_factored
    layers = {m.name: (m.rows, m.columns, m.rank, m.parameters) for m in found.matrices}
    assert layers.pop("model.layers.0.mlp.up_proj") == (48, 16, 3, 3 * (48 + 16))
    assert set(layers) == {f"model.layers.0.{name}" for name in MATRICES[:2]} | {"lm_head.weight"}
    assert "48 × 16" in shown(found)


@pytest.mark.parametrize("down", [None, (4, 16), (3,)])
def test_a_pair_that_is_not_stored_as_the_config_says_is_refused(tmp_path: Path, down) -> None:
    shapes = {"model.layers.0.mlp.up_proj.up.weight": (48, 3)}
    if down:
        shapes["model.layers.0.mlp.up_proj.down.weight"] = down
    with pytest.raises(InputError, match="up_proj") as caught:
        inspect(make(tmp_path / "m", shapes, factored(), stem="eckart"))
    assert caught.value.code == "E-index"


def test_files_are_inspected_as_well_as_folders(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", LLAMA, llama())
    by_index = inspect(folder / "model.safetensors.index.json")
    assert (by_index.kind, by_index.parameters) == ("safetensors", count(LLAMA))
    first = sorted(folder.glob("*.safetensors"))[0]
    assert 0 < inspect(first).parameters < count(LLAMA)
    lone = tmp_path / "lone"
    lone.mkdir()
    first.rename(lone / "anything.safetensors")
    assert inspect(lone).kind == "safetensors"
    assert inspect(lone).path == str(lone)


def test_a_real_gguf_file(smollm2_gguf: Path) -> None:
    found = inspect(smollm2_gguf)
    assert (found.kind, found.architecture, found.blocks, found.licence) == ("gguf", "llama", 30, "apache-2.0")
    assert found.parameters == 134_515_008
    assert found.bytes == smollm2_gguf.stat().st_size
    assert found.tied == (("token_embd.weight", "output.weight"),)
    assert sorted(found.dtypes) == ["F32", "Q4_1", "Q8_0"]
    assert len(found.matrices) == 30 * 7
    assert {(m.rows, m.columns) for m in found.matrices} == {(576, 576), (192, 576), (1536, 576), (576, 1536)}
    assert sum(m.parameters for m in found.matrices) == 134_515_008 - 49152 * 576 - 61 * 576
    assert "134,515,008" in shown(found)


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    content = b"GGUF\3\0\0\0" + bytes(16)
    (tmp_path / "a.gguf").write_bytes(content)
    assert inspect(tmp_path).kind == "gguf"
    (tmp_path / "renamed").write_bytes(content)
    assert inspect(tmp_path / "renamed").kind == "gguf"
    (tmp_path / "b.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"2 GGUF files; name one, as .*a\.gguf"):
        inspect(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt"])
def test_pickled_weights_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n.")
    (tmp_path / "config.json").write_text("{}")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match="pickled") as caught:
            inspect(source)
        assert caught.value.code == "E-pickle"
        assert "safetensors" in caught.value.fix


def test_a_pickle_beside_safetensors_is_ignored(tmp_path: Path) -> None:
    make(tmp_path / "m", LLAMA, llama())
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert inspect(tmp_path / "m").parameters == count(LLAMA)


@pytest.mark.parametrize("source", ["nowhere", "org/model", "/no/such/folder", "", "a\0b", "a/b/c", "org/../model"])
def test_what_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(make(tmp_path / "here", LLAMA))
    with pytest.raises(InputError) as caught:
        inspect(source)
    assert caught.value.code == "E-missing"
    assert ("hf download" in caught.value.fix) == (source in ("nowhere", "org/model"))


@pytest.mark.parametrize("name", ["model.onnx", "config.json", "notes.txt"])
def test_other_files_are_refused_with_what_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(InputError, match=r"a \.gguf file") as caught:
        inspect(tmp_path / name)
    assert caught.value.code == "E-kind"


@pytest.mark.parametrize("variables", [{"HF_HUB_CACHE": "hub"}, {"HF_HOME": ""}, {"XDG_CACHE_HOME": "../.."}, {}])
def test_a_name_is_found_where_the_hub_client_keeps_it(monkeypatch, tmp_path: Path, variables) -> None:
    home = tmp_path / "home" / ".cache" / "huggingface"
    snapshot = home / "hub" / "models--org--model" / "snapshots" / "abc123"
    snapshot.parent.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc123")
    make(snapshot, LLAMA, llama())
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, below in variables.items():
        monkeypatch.setenv("HOME", "/nowhere")
        monkeypatch.setenv(name, str(home / below) if below != "../.." else str(tmp_path / "home" / ".cache"))
    monkeypatch.chdir(tmp_path)
    found = inspect("org/model")
    assert (found.name, found.path, found.kind) == ("org/model", str(snapshot), "huggingface")


def test_a_folder_of_that_name_comes_before_the_cache(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "org").mkdir()
    make(tmp_path / "org" / "model", LLAMA)
    monkeypatch.chdir(tmp_path)
    assert inspect("org/model").path == "org/model"


def test_code_that_the_config_asks_for_is_reported_and_not_run(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", LLAMA, llama(auto_map={"AutoModel": "evil.Model"}))
    (folder / "evil.py").write_text("raise SystemExit('was run')")
    assert inspect(folder).remote_code
    assert "Eckart does not" in shown(inspect(folder))


def test_the_stored_floating_dtype_is_the_one_of_most_bytes(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    arrays = {"w": np.zeros((9, 9), np.float16), "b": np.zeros(9, np.float32), "ids": np.zeros(999, np.int64)}
    pending = [PendingTensor.of(name, array) for name, array in arrays.items()]
    write_sharded(tmp_path / "m", pending, stem="model", max_shard_bytes=10**6)
    source = resolve(tmp_path / "m")
    assert source.floating_dtype == "float16"
    assert sum(tensor.bytes for tensor in source.tensors()) == 162 + 36 + 7992
    assert source.file_bytes == sum(path.stat().st_size for path in (tmp_path / "m").iterdir())


# As documents and on the terminal


def shown(found: Inspection, **how: Any) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(inspect_cli.render(found.to_json(), **how))
    return console.export_text()


def test_the_document_is_strict_json_with_a_schema(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", LLAMA, llama())
    document = inspect(folder).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["schema"] == "eckart.inspect/1"
    assert {tensor["file"] for tensor in document["tensors"]} == {p.name for p in folder.glob("*.safetensors")}
    assert document["matrices"][0]["break_even_rank"] == 8.0
    assert inspect(folder / "model.safetensors.index.json").to_json()["tensors"] == document["tensors"]


def test_the_table_puts_like_matrices_in_one_row_and_sorts(tmp_path: Path) -> None:
    shapes = {f"layers.{i}.{name}": shape for i in range(12) for name, shape in (("a", (4, 4)), ("b", (8, 8)))}
    found = inspect(make(tmp_path / "m", {f"{name}.weight": shape for name, shape in shapes.items()}))
    rows = [line.split() for line in shown(found).splitlines() if line.startswith("layers.")]
    assert [(row[0], row[1], row[2:5]) for row in rows] == [
        ("layers.*.a.weight", "12", ["4", "×", "4"]),
        ("layers.*.b.weight", "12", ["8", "×", "8"]),
    ]
    assert [line[:8] for line in shown(found, sort="bytes").splitlines() if line.startswith("layers.")] == [
        "layers.*"
    ] * 2
    assert shown(found, sort="bytes").index(".b.") < shown(found, sort="bytes").index(".a.")
    (row,) = [line for line in shown(found, sort="params", limit=1).splitlines() if line.startswith("layers.")]
    assert ".b." in row
    assert "… and 1 row more" in shown(found, limit=1)
    assert "more" not in shown(found, limit=2)
    with pytest.raises(UsageError, match="one of name, params"):
        shown(found, sort="beauty")


def test_the_tree_has_a_leaf_for_every_tensor(tmp_path: Path) -> None:
    text = shown(inspect(make(tmp_path / "m", LLAMA)), tree=True)
    tree = text[text.index("└") :]
    assert sum(" F32 " in line for line in tree.splitlines()) == len(LLAMA)
    assert "F32  48 × 16  3.1 kB" in tree


def test_hostile_names_are_shown_inert(tmp_path: Path) -> None:
    shapes = {"evil\x1b[31m[bold]\u202e.weight": (4, 4)}
    found = inspect(make(tmp_path / "m", shapes))
    for text in (shown(found), shown(found, tree=True)):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "[bold]" in text


SLOW_OR_LARGE = {"torch", "transformers", "scipy", "sklearn", "huggingface_hub", "pydantic"}


def test_inspect_imports_nothing_heavy(tmp_path: Path) -> None:
    make(tmp_path / "m", LLAMA, llama())
    script = (
        "import sys; from eckart.cli import _inspect\n"
        "from eckart.models._inspect import inspect\n"
        f"_inspect.inspection_shown(inspect({str(tmp_path / 'm')!r}))\n"
        "print('IMPORTED', *sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split("IMPORTED")[1].split())
    assert "eckart.models._inspect" in imported
    assert imported & SLOW_OR_LARGE == set()


def test_the_doctors_document_tells_the_truth_about_this_installation() -> None:
    document = _doctor.diagnose()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["schema"] == "eckart.doctor/1"
    for name in ("numpy", "scipy", "safetensors", "ml-dtypes"):
        assert document["versions"][name] == metadata.version(name)
    assert document["kernels"] in ("native", "fallback")
    assert document["blas"]
    assert 0 < document["memory_available_bytes"] < document["memory_bytes"]
    assert document["gemm_float32_gflops"] is None
    extras = {entry["extra"]: entry for entry in document["formats"]}
    assert set(extras) - {None} == set(metadata.metadata("eckart").get_all("Provides-Extra")) - {"all", "dev"}
    assert extras["hf"]["installed"] == ("torch" in document["versions"] and "gguf" in document["versions"])


def test_the_doctor_names_the_command_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_the_core(package: str) -> str:
        if package in ("torch", "transformers", "onnx"):
            raise metadata.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(metadata, "version", only_the_core)
    document = _doctor.diagnose()
    extras = {entry["extra"]: entry for entry in document["formats"]}
    assert extras["hf"]["install"] == 'pip install "eckart[hf]"'
    assert extras["hf"]["missing"] == ["torch", "transformers"]  # through eckart[torch] as well
    assert extras["onnx"]["missing"] == ["onnx"]
    assert extras["plot"]["installed"]
    assert "torch" not in document["versions"]
    assert document["gpu"] == "not looked for: torch is not installed"
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(_doctor.render(document))
    assert 'pip install "eckart[hf]"' in console.export_text()


def test_the_doctor_measures_a_rate_that_a_machine_can_have() -> None:
    assert 0.1 < _doctor.diagnose(rate=True)["gemm_float32_gflops"] < 1e6


def test_the_doctor_without_torch_imports_none_of_what_it_lists() -> None:
    script = (
        "import sys; from importlib import metadata; real = metadata.version\n"
        "def version(name):\n"
        "    if name == 'torch': raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.version = version\n"
        "from eckart.cli import _doctor; _doctor.diagnose(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"torch", "transformers", "scipy", "sklearn", "jax", "keras", "onnx"} == set()
