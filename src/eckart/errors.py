"""Every error that Eckart raises on purpose, one class per exit status of the command line.

EckartError                                      status
├─ UsageError (ValueError)                       2   the call itself is wrong: an argument, a plan, a name
│  └─ RankError                                  2   a rank that the matrix cannot have
├─ InputError (ValueError)                       3   a file is missing, malformed, cut short, or of an unknown kind
├─ UnsafeInputError                              4   a file was refused because loading it could do harm
├─ OutputError (OSError)                         5   the result cannot be written: it exists, disk full, no permission
├─ BudgetError (ValueError)                      6   the size asked for cannot be reached, or memory is short
├─ NumericalError (ArithmeticError)              7   NaN or infinity in the data, or no convergence
└─ MissingExtraError (ImportError)               8   an optional dependency is not installed
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "EckartError",
    "InputError",
    "MissingExtraError",
    "NumericalError",
    "OutputError",
    "RankError",
    "UnsafeInputError",
    "UsageError",
    "printable",
]


class EckartError(Exception):
    """What was asked, why it cannot be done and what to do instead.

    message: one sentence with the numbers. why: one line of cause. fix: what to type or change.
    file, tensor: where it happened, if anywhere. code: a stable name such as "E-truncated", shown in brackets.
    """

    status = 70
    default_code = "E-internal"

    def __init__(
        self, message: str, *, why: str = "", fix: str = "", file: str = "", tensor: str = "", code: str = ""
    ) -> None:
        self.message, self.why, self.fix = printable(message), printable(why), printable(fix)
        self.file, self.tensor, self.code = printable(file), printable(tensor), code or self.default_code
        super().__init__("; ".join(part for part in (self.message, self.why, self.fix) if part))


class UsageError(EckartError, ValueError):
    status, default_code = 2, "E-usage"


class RankError(UsageError):
    default_code = "E-rank"


class InputError(EckartError, ValueError):
    status, default_code = 3, "E-input"


class UnsafeInputError(EckartError):
    status, default_code = 4, "E-unsafe"


class OutputError(EckartError, OSError):
    status, default_code = 5, "E-output"


class BudgetError(EckartError, ValueError):
    status, default_code = 6, "E-budget"


class NumericalError(EckartError, ArithmeticError):
    status, default_code = 7, "E-nonfinite"


class MissingExtraError(EckartError, ImportError):
    status, default_code = 8, "E-extra"

    def __init__(self, package: str, extra: str, need: str) -> None:
        super().__init__(f"{need} needs the package {package!r}", fix=f'pip install "eckart[{extra}]"')


def printable(text: str) -> str:
    """Return text with control, bidirectional and surrogate characters escaped, so that a hostile name stays inert."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
