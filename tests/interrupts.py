"""Ctrl-C for a child process, whatever the shell that runs the tests."""

import signal


def heed_interrupts() -> None:
    """Undo an ignored SIGINT: a background job of a shell is started with it, and its children inherit that.

    For preexec_fn of subprocess.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
