"""From a compressed model in memory to a checked folder: save, reload in a fresh process, measure, describe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eckart._compress._card import model_card
from eckart._files import dump_json, new_folder, write_whole
from eckart.errors import EckartError, NumericalError
from eckart.models._fresh import PROBED, in_fresh_process
from eckart.models._save_huggingface import save

if TYPE_CHECKING:
    from eckart._compress._plan import Plan
    from eckart._compress._recover import Recovery
    from eckart.models._huggingface import HuggingFaceModel
    from eckart.models._model import Progress

__all__ = ["Evaluation", "finish"]

GENERATED = 16  # tokens, greedily, that must come out the same after reloading
PROBE = 64  # tokens of the input that both are given
LOGIT_TOLERANCE = 1e-4  # of the largest logit's magnitude or of 1, whichever is larger


@dataclass(frozen=True)
class Evaluation:
    """What to measure the saved model on, and beside which other models; arguments of `measure`."""

    texts: Any
    beside: Sequence[str | os.PathLike[str]]
    tokens: int | Sequence[int]
    context: int
    command: str
    seed: int


def finish(
    small: HuggingFaceModel,
    dense: HuggingFaceModel,
    out: Path,
    evaluation: Evaluation | None,
    max_shard_bytes: int,
    progress: Progress,
) -> None:
    """Write `small` into the new folder `out`, which appears only if size and reloaded outputs are what they should be.

    Sets small.path, small.input_bytes and, where texts are given, small.measurement. EckartError: saved and predicted
    bytes differ, or the reloaded model does not answer as the one in memory does, which would be a fault of Eckart's.
    """
    with new_folder(out) as folder:
        progress("saving", 0, 1)
        plan: Plan = small.plan
        small.input_bytes = save(small, folder, dtype=plan.dtype, max_shard_bytes=max_shard_bytes)
        plan.save(folder / "eckart_plan.json")
        _check_size(small, plan)
        _check_reloaded(small, folder, progress)
        if evaluation is not None:
            small.measurement = _measured(
                dense, folder, out, evaluation, plan, small.recovery, _is_smaller(small), progress
            )
            with write_whole(folder / "eckart_measurement.json") as file:
                file.write(dump_json(small.measurement).encode())
        with write_whole(folder / "README.md") as file:
            file.write(model_card(small, dense, plan, small.measurement).encode())
    small.path, small.name = str(out), out.name


def _check_size(small: HuggingFaceModel, plan: Plan) -> None:
    predicted = plan.bytes_after if _is_smaller(small) else plan.bytes_before
    if small.input_bytes != predicted:
        raise EckartError(f"the saved weights take {small.input_bytes:,} bytes, not the {predicted:,} predicted")
    if _is_smaller(small) and small.parameters != plan.parameters_after:
        raise EckartError(f"{small.parameters:,} parameters were saved, not the {plan.parameters_after:,} planned")


def _is_smaller(small: HuggingFaceModel) -> bool:
    """Return whether a model has the plan's size, and is no dense checkpoint of factors multiplied out."""
    return bool(small.replaced) or small.plan.change is not None


def _check_reloaded(small: HuggingFaceModel, folder: Path, progress: Progress) -> None:
    """Compare outputs and greedy generation of the reloaded files with those of the model that was saved.

    What the files generate is given to that model in one run, in which each token must be as likely as any other: so
    blocks that wait on disk are read once here.
    """
    import torch

    progress("checking the saved files", 0, 1)
    vocabulary = small.module.get_input_embeddings().num_embeddings
    tokens = torch.randint(0, vocabulary, (min(PROBE, small.context // 2),), generator=torch.Generator().manual_seed(0))
    request = {"work": "probe", "path": str(folder), "tokens": tokens.tolist(), "generate": GENERATED}
    again = in_fresh_process({**request, "stream": bool(small.shelf)})
    continued = torch.tensor(again["continued"], dtype=torch.int64)
    outputs = small.run(torch.cat([tokens, continued])[None])[0].double()
    here = outputs[: len(tokens)].flatten()[-PROBED:]
    if not torch.isfinite(here).all():
        raise NumericalError("the compressed model's outputs are not finite", fix="a larger keep, or --dtype float32")
    difference = float((here - torch.tensor(again["output"], dtype=torch.float64)).abs().max())
    tolerance = LOGIT_TOLERANCE * max(1.0, float(outputs.abs().max()))
    if not difference <= tolerance:
        raise EckartError(f"reloaded in a fresh process, the outputs differ by {difference:.3g}; nothing was kept")
    if len(continued):
        logits = outputs[len(tokens) - 1 : -1]
        given_up = logits.max(dim=1).values - logits.gather(1, continued[:, None])[:, 0]
        if not float(given_up.max()) <= tolerance:
            raise EckartError("reloaded in a fresh process, the model generates other text; nothing was kept")
    progress("checking the saved files", 1, 1)


def _measured(
    dense: HuggingFaceModel,
    folder: Path,
    out: Path,
    wanted: Evaluation,
    plan: Plan,
    recovery: Recovery | None,
    smaller: bool,
    progress: Progress,
) -> dict[str, Any]:
    texts = [wanted.texts] if isinstance(wanted.texts, (str, os.PathLike)) else list(wanted.texts)
    others = [os.fspath(other) for other in wanted.beside]
    answer: dict[str, Any] = in_fresh_process(
        {
            "work": "measure",
            "models": [dense.path, str(folder), *others],
            "labels": [
                "dense",
                plan.method if plan.method in ("plain", "int8") else "eckart",
                *(Path(o).name for o in others),
            ],
            "data": [os.fspath(text) for text in texts] or None,
            "tokens": wanted.tokens if isinstance(wanted.tokens, int) else list(wanted.tokens),
            "context": wanted.context,
            "seed": wanted.seed,
            "command": wanted.command,
            "plan": plan.to_json() if smaller else None,  # a dense checkpoint has not the plan's sizes
        },
        progress,
    )
    answer["models"][1]["path"] = str(out)
    answer["recovery"] = None if recovery is None else asdict(recovery)
    return answer
