"""The search of LEMS: ranks by a divergence that is measured once a layer, scaled by its spectrum and by its depth.

The error of layer l at rank r is KL_l · tail_l(r) / tail_l(r_0), tail being what its truncation loses: KL_l is measured
with that layer alone at r_0, a tenth of its break-even rank. In a choice of ranks it counts 1 + γ h(block) times, h
falling from 1 in the first block to 0 in the last; the γ whose choice diverges least is taken.

Source: LEMS (ICML 2026). Here an exact dynamic programme stands for its integer solver, a fixed grid of γ with its
exponent α = 0 for ten trials of Optuna in both, and SEARCH_TOKENS tokens for its evaluation set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eckart._compress._calibrate import home_blocks

if TYPE_CHECKING:
    import torch

    from eckart._compress._job import Job
    from eckart._compress._journal import Journal
    from eckart._compress._ranks import Offers
    from eckart._factorise import Cut, Pair, RowGroups, Spectrum
    from eckart.models._option import Option

__all__ = ["best_of_depths", "depth_bias", "divergence", "measured", "within_bounds"]

SEARCH_TOKENS = 512
MEASURED_AT = 0.1  # of the break-even rank of a pair
SMALLEST_TAIL = 1e-6  # of the whole
DEPTH_WEIGHTS = (0.0, 1.0, 3.0, 6.0)  # γ, which LEMS draws from 0 to 7
TEMPERATURE = 0.6
SKIPPED = 256  # positions at the beginning of a piece, or half of it, that count for nothing
LEAST_SHARE, LEAST_SHARE_BELOW_HALF, LARGEST_SHARE = 0.3, 0.1, 0.95  # of a layer's numbers, that options may have


@dataclass(frozen=True)
class Weighted:
    """A cut whose losses count `weight` times."""

    cut: Cut
    weight: float

    def parts(self, form: str, ranks: Sequence[int]) -> list[tuple[Spectrum, str, int]]:
        return [(_Scaled(part, self.weight), how, k) for part, how, k in self.cut.parts(form, ranks)]

    def factors(self, form: str, ranks: Sequence[int]) -> Pair | RowGroups:
        return self.cut.factors(form, ranks)


@dataclass(frozen=True)
class _Scaled:
    part: Spectrum
    weight: float

    @property
    def losses(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return self.part.losses * self.weight

    def error(self, form: str, dtype: str, k: int) -> float:
        return self.weight * self.part.error(form, dtype, k)


def within_bounds(offers: Offers, keep: float) -> dict[str, list[Option]]:
    """Return the offers without what LEMS leaves out: too few numbers, or hardly fewer than dense."""
    least = LEAST_SHARE if keep >= 0.5 else LEAST_SHARE_BELOW_HALF
    return {
        name: [
            options[0],
            *(o for o in options[1:] if least * options[0].params <= o.params <= LARGEST_SHARE * options[0].params),
        ]
        for name, options in offers.items()
    }


def divergence(dense: torch.Tensor, logits: torch.Tensor) -> float:
    """Return the mean of KL(dense ‖ other) over the later positions, of logits (…, tokens, vocabulary), in nats."""
    import torch

    skipped = min(SKIPPED, dense.shape[-2] // 2)
    p, q = ((part[..., skipped:, :].float() / TEMPERATURE).log_softmax(-1) for part in (dense, logits))
    return float(torch.linalg.vecdot(p.exp(), p - q).double().mean())


def measured(job: Job, cuts: Mapping[str, Cut], pieces: torch.Tensor, journal: Journal) -> dict[str, Cut]:
    """Return the cuts with losses in nats, scaled to the divergence with that layer alone at the rank of measurement.

    Only the blocks from the layer's own on run again. What the journal holds is not measured again.
    """
    model, batch = job.model.copy(), _search_pieces(pieces)
    found: dict[str, Cut] = {}
    blocks = model.blocks()
    homes = home_blocks(list(cuts), blocks)
    with contextlib.closing(model.runner([batch], job.device, journal.folder)) as runner:
        runner.start()
        for i in range(len(blocks)):
            runner.forward(i)
        dense = runner.outputs(0)[0]
        for done, (name, cut) in enumerate(cuts.items()):
            job.progress("measuring divergences", done, len(cuts))
            m, n = model.weight(name).shape
            k = max(1, int(m * n / (m + n) * MEASURED_AT))
            if (value := journal.number(name)) is None:
                module = model.module.get_submodule(name)
                model.replace_(name, model.options(name, job.dtype, {"pair": [k]})[1], cut.factors("pair", [k]))
                start = homes[name] if homes[name] >= 0 else len(blocks)
                value = divergence(dense, runner.onward(start, 0)[0])
                model.module.set_submodule(name, module)
                journal.put_number(name, value)
            ((part, *_),) = cut.parts("pair", [k])
            found[name] = Weighted(cut, value / max(part.losses[k], SMALLEST_TAIL * part.losses[0], _TINY))
    return found


_TINY = 1e-300  # a layer of nothing but zeros loses nothing


def depth_bias(name: str, blocks: Sequence[str], weight: float) -> float:
    """Return 1 + γ h: h = 1 in the first block, 0 in the last and outside of blocks."""
    (i,) = home_blocks([name], blocks).values()
    return 1 + weight * (len(blocks) - 1 - i) / max(1, len(blocks) - 1) if i >= 0 else 1.0


def best_of_depths(
    job: Job,
    choose: Callable[[Mapping[str, Cut]], dict[str, Option]],
    cuts: Mapping[str, Cut],
    pieces: torch.Tensor,
) -> dict[str, Option]:
    """Return the choice, over all weights of depth, of which the whole model diverges least."""
    model, batch = job.model, _search_pieces(pieces)
    dense = model.run(batch)
    best: tuple[float, dict[str, Option]] | None = None
    for done, weight in enumerate(DEPTH_WEIGHTS):
        job.progress("trying weights of depth", done, len(DEPTH_WEIGHTS))
        options = choose({name: Weighted(cut, depth_bias(name, model.blocks(), weight)) for name, cut in cuts.items()})
        small = model.copy()
        for name, option in options.items():
            if option.ranks:
                small.assign_(name, option, cuts[name].factors(option.format, option.ranks))
        reached = divergence(dense, small.run(batch))
        if best is None or reached < best[0]:
            best = reached, options
    assert best is not None
    return best[1]


def _search_pieces(pieces: torch.Tensor) -> torch.Tensor:
    return pieces[: max(1, SEARCH_TOKENS // pieces.shape[1])]
