"""Work in a fresh process: reload what was saved and measure it there, where nothing of the run that made it lives.

`in_fresh_process` sends one request to `python -m eckart.models._fresh` and returns its answer; both are JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eckart import errors
from eckart.errors import EckartError
from eckart.models._model import Progress, silent

if TYPE_CHECKING:
    from eckart.models._huggingface import HuggingFaceModel

__all__ = ["continuation", "in_fresh_process"]


def in_fresh_process(request: dict[str, Any], progress: Progress = silent) -> Any:
    """Return the answer to {"work": "probe" | "measure", …}; an EckartError raised there is raised here.

    The process is ended with this one's interruption, whatever it is doing.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "eckart.models._fresh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        for line in process.stdout:
            message = json.loads(line)
            if "progress" in message:
                progress(*message["progress"])
            elif "error" in message:
                kind = getattr(errors, message["error"].pop("kind"))
                raise _rebuilt(kind, message["error"])
            else:
                return message["answer"]
        status = process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    raise EckartError(
        f"the fresh process ended with status {status} and no answer",
        why="it was killed, which the system does when memory runs out" if status < 0 else "its messages are above",
    )


def probe(path: str, tokens: Sequence[int], generate: int, stream: bool) -> dict[str, Any]:
    """Return what a saved model answers to `tokens`: its last outputs, and the greedy continuation."""
    import torch

    from eckart.models import open_model

    model: Any = open_model(path, stream=stream)
    output = model.run(torch.tensor([list(tokens)]))[0]
    return {
        "output": output.double().flatten()[-PROBED:].tolist(),
        "continued": continuation(model, tokens, generate),
    }


def continuation(model: HuggingFaceModel, tokens: Sequence[int], count: int) -> list[int]:
    """Return the `count` tokens that the model itself would add, greedily; [] for one that predicts none."""
    import torch

    if not model.predicts_next_token:
        return []
    added: list[int] = []
    batch, past = torch.tensor([list(tokens)]), None
    with torch.no_grad(), model.running():
        for _ in range(count):
            out = model.module(batch.to(model.device), past_key_values=past, use_cache=True)
            batch, past = out.logits[:, -1:].argmax(-1), out.past_key_values
            added.append(int(batch))
    return added


PROBED = 65536  # output values compared


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted with us, and ends us
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    asked = sys.stdin.read()
    if not asked:  # the parent ended before it asked
        return
    request = json.loads(asked)

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    def report(stage: str, done: int, total: int) -> None:
        send({"progress": [stage, done, total]})

    from eckart.models._measure import measure_for_fresh_process

    work = request.pop("work")
    try:
        answer: Any = probe(**request) if work == "probe" else measure_for_fresh_process(progress=report, **request)
    except EckartError as error:
        fields = {name: getattr(error, name) for name in ("message", "why", "fix", "file", "tensor", "code")}
        send({"error": {"kind": type(error).__name__, **fields}})
    else:
        send({"answer": answer})


def _rebuilt(kind: type[EckartError], fields: dict[str, str]) -> EckartError:
    error = kind.__new__(kind)
    EckartError.__init__(error, **fields)
    return error


if __name__ == "__main__":
    main()
