"""What is finished of a compression, on disk: truncated layers wait there for their ranks, and a run can go on there.

A folder with a file for each layer, one for the gradients at the block boundary that was reached, and the fingerprint
of all that these depend on. Every file is written whole, so that a run can end at any point.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart._compress._tables import StoredTable
from eckart._factorise import Gram, Pair, Spectrum, Truncation, check_kept, losses_of
from eckart._files import cannot_write, dump_json, refuse_filled, write_whole
from eckart._rounding import Rounding
from eckart.errors import EckartError, OutputError, UsageError
from eckart.models._untrusted import read_json

if TYPE_CHECKING:
    import torch

    from eckart.models._taps import TableTaps

__all__ = ["Journal", "StoredTruncation", "journal_beside"]

FINGERPRINT, GRADIENTS, TRAINING = "fingerprint.json", "gradients.pt", "training-*.safetensors"
LOCK = "eckart.lock"  # held by the process that is at work in the folder; the system lets go of it however that ends


@dataclass(frozen=True)
class StoredTruncation:
    """A Truncation whose factors are in a file. s: as there. rounding: what storing it in fewer bits adds."""

    s: np.ndarray[Any, np.dtype[np.float64]]
    rounding: Rounding
    path: Path

    @cached_property
    def losses(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return losses_of(self.s)

    def error(self, form: str, dtype: str, k: int) -> float:
        return float(self.losses[k]) + self.rounding.error(form, dtype, k)

    def parts(self, form: str, ranks: Sequence[int]) -> list[tuple[Spectrum, str, int]]:
        return [(self, form, ranks[0] if ranks else len(self.s))]

    def factors(self, form: str, ranks: Sequence[int]) -> Pair:
        """Return the best factors of one rank, up to the rank that was kept; only these are read."""
        from safetensors import safe_open

        (k,) = ranks
        with safe_open(self.path, framework="pt") as file:
            columns, down = file.get_slice("columns"), file.get_slice("down")
            check_kept(k, columns.get_shape()[0])
            return Pair(columns[:k].T.contiguous(), down[:k])


class Journal:
    """The files of one compression in a folder that exists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, layer: str) -> bool:
        return self._path(layer).exists()

    def put(self, layer: str, cut: Truncation, rounding: Rounding) -> None:
        """Keep a truncation, and what rounding its factors costs; OutputError: it cannot be written."""
        import torch
        from safetensors.torch import save

        parts = {"columns": cut.up.T.contiguous(), "down": cut.down.contiguous()}
        for name, numbers in {"s": cut.s, "pair": rounding.pair, "pifa": rounding.pifa}.items():
            parts[name] = torch.from_numpy(numbers.copy())
        parts |= {f"whole.{dtype}": torch.tensor(error, dtype=torch.float64) for dtype, error in rounding.whole.items()}
        with write_whole(self._path(layer)) as file:
            file.write(save(parts))

    def get(self, layer: str) -> StoredTruncation:
        from safetensors import safe_open

        with safe_open(self._path(layer), framework="np") as file:
            s, pair, pifa = (file.get_tensor(name) for name in ("s", "pair", "pifa"))
            names = [name for name in file.keys() if name.startswith("whole.")]  # noqa: SIM118 - not a mapping
            whole = {name.removeprefix("whole."): float(file.get_tensor(name)) for name in names}
        return StoredTruncation(s, Rounding(whole, pair, pifa), self._path(layer))

    def put_table(self, layer: str, rows: Sequence[torch.Tensor], cuts: Iterable[tuple[Truncation, Rounding]]) -> None:
        """Keep the truncations of the groups of a table, and which rows are in each."""
        from safetensors.torch import save

        for g, (cut, rounding) in enumerate(cuts):
            self.put(f"{layer}#{g}", cut, rounding)
        with write_whole(self._path(layer)) as file:  # last: with this the table is there
            file.write(save({str(g): some.cpu().contiguous() for g, some in enumerate(rows)}))

    def get_table(self, layer: str, weight: torch.Tensor, bias: bool = False) -> StoredTable:
        from safetensors.torch import load_file

        found = load_file(self._path(layer))
        groups = range(len(found))
        return StoredTable(
            weight, tuple(found[str(g)] for g in groups), tuple(self.get(f"{layer}#{g}") for g in groups), bias
        )

    def put_seen(self, layer: str, taps: TableTaps) -> None:
        """Keep what was seen of a table while the head ran, until the gradients reach it."""
        if self.has(f"{layer}#seen"):
            return
        import torch
        from safetensors.torch import save

        parts = {"looked_up": taps.looked_up, "predicted": taps.predicted}
        if taps.inputs is not None:
            parts |= {"sum": taps.inputs.sum, "count": torch.tensor(taps.inputs.count)}
        with write_whole(self._path(f"{layer}#seen")) as file:
            file.write(save({name: part.cpu().contiguous() for name, part in parts.items()}))

    def seen(self, layer: str) -> TableTaps:
        from safetensors.torch import load_file

        from eckart.models._taps import TableTaps

        found = load_file(self._path(f"{layer}#seen"))
        inputs = None
        if "sum" in found:
            inputs = Gram(len(found["sum"]))
            inputs.sum, inputs.count = found["sum"], int(found["count"])
        return TableTaps(found["looked_up"], found["predicted"], inputs)

    def put_number(self, layer: str, value: float) -> None:
        """Keep what was measured of a layer."""
        with write_whole(self._path(f"{layer}#number")) as file:
            file.write(dump_json(value).encode())

    def number(self, layer: str) -> float | None:
        """Return what was measured of a layer, None where nothing was."""
        path = self._path(f"{layer}#number")
        return float(json.loads(path.read_bytes())) if path.exists() else None

    def has_metric(self, layer: str) -> bool:
        return self._path(f"{layer}#metric").exists()

    def put_metric(self, layer: str, inputs: torch.Tensor) -> None:
        """Keep the metric of a layer's inputs, (n, n), until those that it is truncated with are reached."""
        from safetensors.torch import save

        with write_whole(self._path(f"{layer}#metric")) as file:
            file.write(save({"inputs": inputs.cpu().contiguous()}))

    def metric(self, layer: str) -> torch.Tensor:
        from safetensors.torch import load_file

        return load_file(self._path(f"{layer}#metric"))["inputs"]

    def has_refit(self, layer: str, options: str) -> bool:
        return self._path(f"{layer}#refit {options}").exists()

    def put_refit(self, layer: str, options: str, pair: Pair) -> None:
        """Keep factors that were fitted anew, in float32; they serve only these options, a hash of every layer's."""
        from safetensors.torch import save

        parts = {"up": pair.up.float().cpu().contiguous(), "down": pair.down.float().cpu().contiguous()}
        with write_whole(self._path(f"{layer}#refit {options}")) as file:
            file.write(save(parts))

    def refit(self, layer: str, options: str) -> Pair:
        from safetensors.torch import load_file

        return Pair(**load_file(self._path(f"{layer}#refit {options}")))

    def put_gradients(self, boundary: int, gradients: Sequence[torch.Tensor]) -> None:
        """Keep the gradients of every batch at a block boundary, in place of those at the last one."""
        import torch

        with write_whole(self.folder / GRADIENTS) as file:  # not by safetensors, which copies them twice
            torch.save({"boundary": boundary, "gradients": [gradient.cpu() for gradient in gradients]}, file)

    def gradients(self) -> tuple[int, list[torch.Tensor]] | None:
        """Return the boundary that was reached and the gradients there, or None where there are none."""
        import torch

        if not (self.folder / GRADIENTS).exists():
            return None
        found = torch.load(self.folder / GRADIENTS, weights_only=True)
        return int(found["boundary"]), list(found["gradients"])

    def put_training(self, what: str, state: Mapping[str, torch.Tensor]) -> None:
        """Keep where a training is, in place of where it was; what: a hash of all that it depends on."""
        from safetensors.torch import save

        with write_whole(self.folder / TRAINING.replace("*", what[:24])) as file:
            file.write(save({name: part.cpu().contiguous() for name, part in state.items()}))

    def training(self, what: str) -> dict[str, torch.Tensor] | None:
        """Return where this training was, or None where it has not begun."""
        from safetensors.torch import load_file

        path = self.folder / TRAINING.replace("*", what[:24])
        return load_file(path) if path.exists() else None

    def end_trainings(self) -> None:
        """Let go of the states of trainings, which are large."""
        for path in self.folder.glob(TRAINING):
            path.unlink()

    def _path(self, layer: str) -> Path:
        return self.folder / f"{hashlib.sha256(layer.encode()).hexdigest()[:24]}.safetensors"


@contextlib.contextmanager
def journal_beside(
    out: Path | None, kept: Path | None, fingerprint: Mapping[str, Any], *, resume: bool
) -> Iterator[Journal]:
    """Give the journal of the run that writes `out`; it is removed when the block ends well or by an error of Eckart's.

    resume: go on with the journal that an interrupted run left, or begin where there is none. kept: a folder for the
    journal, which stays there for other runs. Without either the journal is a temporary one. fingerprint: what its
    contents depend on, part by part. OutputError E-exists: there is a journal already, and nobody asked to go on, or
    another process is at work in it; UsageError: it is one of something else.
    """
    if kept is not None:
        if not ((kept / FINGERPRINT).exists() or (kept / LOCK).exists()):
            refuse_filled(kept)
        with _at_work(kept):
            _check(kept, fingerprint)
            _clear(out)
            journal = Journal(kept)
            yield journal
            journal.end_trainings()
        return
    if out is None:
        with tempfile.TemporaryDirectory(prefix="eckart-") as temporary:
            yield Journal(Path(temporary))
        return
    folder = out.with_name(f".{out.name}.journal")
    begun = folder.exists()
    with _at_work(folder):
        if begun and not resume:
            raise OutputError(
                f"an unfinished run towards {out} is in {folder}",
                fix="--resume to go on with it, or remove that folder",
                file=str(folder),
                code="E-exists",
            )
        _check(folder, fingerprint)
        _clear(out)
        try:
            yield Journal(folder)
        except EckartError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except KeyboardInterrupt as interruption:
            interruption.add_note(f"finished layers are kept in {folder}; --resume goes on with them")
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _at_work(folder: Path) -> Iterator[None]:
    """Make the folder, if it is not there, and keep other processes out; OutputError: one is at work in it."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"another process is at work in {folder}",
            fix="wait for it, or stop it first",
            file=str(folder),
            code="E-exists",
        ) from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _clear(out: Path | None) -> None:
    """Remove what a run that was killed while it saved has left beside `out`."""
    for unfinished in out.parent.glob(f".{glob.escape(out.name)}.unfinished-*") if out else ():
        shutil.rmtree(unfinished, ignore_errors=True)


def _check(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Begin a new journal, or raise UsageError where it is one of something else."""
    if not (folder / FINGERPRINT).exists():
        with write_whole(folder / FINGERPRINT) as file:
            file.write(dump_json(dict(fingerprint)).encode())
        return
    found = read_json(folder / FINGERPRINT)
    for part, here in fingerprint.items():
        if (there := found.get(part)) != here:
            raise UsageError(
                f"what is kept in {folder} is of another run: its {part} is {there}, this one's {here}",
                fix="run again with what that was begun with, or remove that folder",
            )
