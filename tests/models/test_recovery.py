"""Recovery: training brings the compressed model nearer to the dense one, is the same bit for bit, and does no harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import eckart
from eckart._compress import _recover
from eckart.errors import UsageError
from eckart.models._quality import quality
from eckart.models._texts import contexts, read_text
from eckart.report import write_report

Tiny = Callable[..., Path]


def compressed(model: Any, texts: dict[str, Path], **more: Any) -> Any:
    job = {"data": texts["train"], "tokens": 1024, "context": 64, "keep": 0.6, **more}
    return eckart.compress(model, **job)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_training_brings_the_outputs_nearer(tiny: Tiny, texts: dict[str, Path], kind: str) -> None:
    model: Any = eckart.open_model(tiny(kind))
    before = {name: tensor.clone() for name, tensor in model.tensors()}
    small = compressed(model, texts, recover="60 steps")
    assert small.recovery.kept
    assert small.recovery.steps == 60
    assert small.recovery.after < 0.99 * small.recovery.before
    untrained = compressed(model, texts)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors())
    assert [p.shape for p in small.module.parameters()] == [p.shape for p in untrained.module.parameters()]
    assert not any(p.requires_grad for p in small.module.parameters())
    assert untrained.recovery is None
    pieces = contexts(model.tokenizer, read_text(texts["test"]), context=64, count=16)
    trained, raw = (_recover._judged(one, model, pieces) for one in (small, untrained))
    assert trained < raw
    if model.predicts_next_token:  # the same divergence as that which is reported
        assert trained == pytest.approx(quality([model, small], pieces)[1].kl, rel=1e-4)


def test_what_is_no_better_is_given_up(tiny: Tiny, texts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recover, "RATE", 3.0)  # far too much
    small, untrained = compressed(tiny("llama"), texts, recover="3 steps"), compressed(tiny("llama"), texts)
    assert not small.recovery.kept
    assert not small.recovery.after < small.recovery.before
    there = dict(untrained.module.state_dict())
    assert all(torch.equal(tensor, there[name]) for name, tensor in small.module.state_dict().items())


def test_training_ends_by_the_minute_and_reports_itself(tiny: Tiny, texts: dict[str, Path], tmp_path: Path) -> None:
    small = compressed(
        tiny("llama"), texts, recover=0.02, out=tmp_path / "small", evaluate=texts["test"], evaluate_tokens=256
    )
    assert small.recovery.steps >= 1
    assert small.measurement["recovery"]["steps"] == small.recovery.steps
    assert "steps of training on" in (tmp_path / "small" / "README.md").read_text()
    write_report(small.measurement, tmp_path / "report.html")
    assert "steps of training on" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("wrong", ["soon", "-3", 0, "2.5 steps", "nan"])
def test_a_time_that_is_none_is_refused(tiny: Tiny, texts: dict[str, Path], wrong: Any) -> None:
    with pytest.raises(UsageError, match="is no time"):
        compressed(tiny("llama"), texts, recover=wrong)


def test_training_needs_texts_and_factors(tiny: Tiny, texts: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="trains factors on the texts"):
        eckart.compress(tiny("llama"), 0.8, method="plain", recover=1)
    with pytest.raises(UsageError, match="keeps none"):
        compressed(tiny("llama"), texts, recover=1, format="dense")


def test_a_text_of_one_piece_is_refused(tiny: Tiny, texts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(texts["train"].read_text()[:300])
    with pytest.raises(UsageError, match="one piece of"):
        eckart.compress(tiny("llama"), 0.8, method="plain", data=tmp_path / "short.txt", recover="2 steps")


def test_all_pieces_are_seen_before_one_is_seen_again() -> None:
    pieces = torch.arange(7)[:, None].repeat(1, 4)
    seen = [int(i) for step in range(7) for i in _recover._batch(pieces, step, 3)[:, 0]]
    assert sorted(seen[:7]) == sorted(seen[7:14]) == list(range(7))
    assert seen[:7] != seen[7:14]
