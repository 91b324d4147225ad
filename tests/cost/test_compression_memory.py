"""A compression of files holds one block at a time: with four times the blocks it takes no more memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.real_models import VOCABULARY, save_tokenizer

BLOCK_BYTES = 4 * (4 * 512 * 512 + 3 * 512 * 2048 + 2 * 512)  # of one block's weights in float32: 16.8 MB
GROWTH = 0.05  # of the weights of the further blocks: what is known of a layer without its weights
# What is freed goes back to the system at once, so that what is measured is what is held. With the allocator's own rule
# (it learns to keep what is freed often) two equal runs differed by 12 MB; with this one by 0.5 MB.
FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}

# Prints by how much resident memory rose above what the imports took, and the peak of the process that checks.
COMPRESS = """
import json, resource, sys
import eckart.models._huggingface, eckart._compress._finish, transformers.models.llama.modeling_llama
import eckart

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name + ":"))

open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = status("VmRSS")
model, text, out = sys.argv[1:]
small = eckart.compress(model, 0.98, data=text, tokens=128, context=64, layers="*o_proj", out=out)
assert small.replaced
checking = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"compressing": status("VmHWM") - before, "checking": checking}))
"""


def saved(folder: Path, text: Path, blocks: int) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=2048, num_hidden_layers=blocks,
        num_attention_heads=8, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="40MB")
    save_tokenizer(text, folder)
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of resident memory from /proc")
def test_peak_memory_does_not_grow_with_the_number_of_blocks(tmp_path: Path, texts: dict[str, Path]) -> None:
    peaks = {}
    for blocks in (4, 16):
        model = saved(tmp_path / f"model-{blocks}", texts["train"], blocks)
        command = [sys.executable, "-c", COMPRESS, str(model), str(texts["train"]), str(tmp_path / f"small-{blocks}")]
        environment = os.environ | FREED_AT_ONCE
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        peaks[blocks] = json.loads(done.stdout)
    for process in ("compressing", "checking"):
        assert peaks[16][process] - peaks[4][process] <= GROWTH * 12 * BLOCK_BYTES, (process, peaks)
