"""Child processes that are prepared before their program begins."""

import sys

HEED_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)"  # a shell's background job ignores it


def prepared(command: list[str], setup: str) -> list[str]:
    """Return a command that runs Python code and then becomes the given one; signals and limits stay as they were set.

    command: begins with the path of a program. preexec_fn would do it too, by a fork, of which JAX's threads complain.
    """
    return [sys.executable, "-c", f"import os, sys\n{setup}\nos.execv(sys.argv[1], sys.argv[1:])", *command]
