"""svd as a function of torch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from eckart._decomposed import SVD
from eckart._gradients._result import Call, Differentiable, differentiable, unrounded
from eckart._gradients._rules import pull_factors, pull_low_rank
from eckart.errors import UsageError

__all__ = ["asks", "differentiated"]


def asks(A: torch.Tensor) -> bool:
    """Say whether a gradient may be asked for."""
    return A.requires_grad and torch.is_grad_enabled() and A.layout is torch.strided


def differentiated(A: torch.Tensor, call: Call) -> Differentiable:
    """Return the SVD of a tensor with gradients."""
    U, s, Vt, result = _applied(_Factors, A, call)

    def low_rank(U: torch.Tensor, s: torch.Tensor, Vt: torch.Tensor) -> Any:
        return _applied(_LowRank, A, call, replace(result, U=U.detach(), s=s.detach(), Vt=Vt.detach()))

    return differentiable(result, low_rank, U=U, s=s, Vt=Vt)


class _Factors(torch.autograd.Function):
    @staticmethod
    def forward(A: torch.Tensor, call: Call) -> Any:
        result = call.run(A.detach())
        return result.U, result.s, result.Vt, result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        A, ctx.call = inputs
        ctx.save_for_backward(A, *output[:3])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _applied(_Pulled, pull_factors, ctx.call, *ctx.saved_tensors, *gradients[:3]), None


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(A: torch.Tensor, call: Call, factors: SVD) -> Any:
        return SVD.reconstruct(factors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        A, ctx.call, factors = inputs
        ctx.save_for_backward(A, *factors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _applied(_Pulled, pull_low_rank, ctx.call, *ctx.saved_tensors, *gradients), None, None


class _Pulled(torch.autograd.Function):
    """The gradient with respect to A. It has no derivative, and says so rather than be taken for a constant."""

    @staticmethod
    def forward(rule: Callable[..., Any], call: Call, A: torch.Tensor, *tensors: torch.Tensor) -> Any:
        A, U, s, Vt, *gradients = (x.detach() for x in (A, *tensors))
        return rule(A, *unrounded(A, call, U, s, Vt), *gradients, call.center).to(A.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise UsageError("svd has first derivatives only", fix="leave out create_graph=True")


def _applied(function: Any, *inputs: Any) -> Any:
    return function.apply(*inputs)
