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
from typing import Any

from eckart import errors
from eckart.errors import EckartError
from eckart.models._model import Progress, silent

__all__ = ["in_fresh_process"]


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
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    raise EckartError(
        f"the fresh process ended with status {process.returncode} and no answer",
        why="it was killed, which the system does when memory runs out" if process.returncode < 0 else "",
        fix="see its messages above",
    )


def probe(path: str, tokens: Sequence[int], generate: int) -> dict[str, Any]:
    """Return what a saved model answers to `tokens`: the logits of the last position and the greedy continuation."""
    import torch

    from eckart.models import open_model

    model: Any = open_model(path)
    batch = torch.tensor([list(tokens)])
    output = model.run(batch)[0]
    continued: list[int] = []
    for _ in range(generate if model.predicts_next_token else 0):
        token = model.run(torch.tensor([[*tokens, *continued]]))[0, -1].argmax()
        continued.append(int(token))
    return {"output": output.double().flatten()[-PROBED:].tolist(), "continued": continued}


PROBED = 65536  # output values compared


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted with us, and ends us
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    request = json.loads(sys.stdin.read())

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
