"""What every verb does at its ends: data to stdout, all else to stderr, and an exit status that says what happened.

0 done; 2 the call was wrong; 3 unreadable input; 4 unsafe input refused; 5 output not writable; 6 budget or memory;
7 numerical failure; 8 a package is missing; 70 a fault of Eckart's; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

from eckart.errors import EckartError

__all__ = ["print_json", "running"]

INTERRUPTED, TERMINATED, OUT_OF_MEMORY = 130, 143, 6


@contextlib.contextmanager
def running(*, as_json: bool = False) -> Iterator[None]:
    """Run a verb: what goes wrong is told on stderr (as_json: on stdout, as JSON) and becomes the exit status."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except EckartError as error:
        _tell(error, as_json)
        sys.exit(error.status)
    except MemoryError as error:
        _tell(EckartError(f"memory ran out: {error}", fix="a smaller --tokens or --context", code="E-memory"), as_json)
        sys.exit(OUT_OF_MEMORY)
    except KeyboardInterrupt as interruption:
        said = ["interrupted; nothing half-written was left behind", *getattr(interruption, "__notes__", ())]
        print("\n".join(said), file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def print_json(value: Any) -> None:
    """Print strict JSON with sorted keys on stdout, in ASCII, so that no name in it can steer a terminal."""
    print(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))


def _tell(error: EckartError, as_json: bool) -> None:
    if as_json:
        fields = {"code": error.code, "message": error.message, "why": error.why, "hint": error.fix}
        print_json({"error": {**fields, "file": error.file, "tensor": error.tensor}})
        return
    lines = [f"error[{error.code}]: {error.message}"]
    lines += [f"  {label}: {text}" for label, text in (("why", error.why), ("fix", error.fix)) if text]
    print("\n".join(lines), file=sys.stderr)


def _terminate(number: int, frame: Any) -> None:
    sys.exit(TERMINATED)
