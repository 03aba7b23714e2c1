"""How an operator becomes a `torch.library` operator: schema, implementation, fake kernel, autograd from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

library = torch.library.Library("fastmmd", "DEF")


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Register `fastmmd::schema` for every device. Without `backward`, differentiating it raises."""
    name = schema.split("(", 1)[0]
    library.define(schema)
    library.impl(name, _without_autocast(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastmmd::{name}", fake, lib=library)
    if backward is None:

        def backward(ctx: Any, *_: Tensor) -> None:
            raise RuntimeError(
                f"fastmmd::{name} cannot be differentiated: the operators of fastmmd have no second derivative; "
                "create_graph=True through them works only as long as nothing differentiates the gradient again"
            )

    torch.library.register_autograd(f"fastmmd::{name}", backward, setup_context=setup_context, lib=library)


def needs_grad(*tensors: Tensor | None) -> list[bool]:
    """Which of the arguments the operator has to differentiate in."""
    enabled = torch.is_grad_enabled()
    return [enabled and tensor is not None and tensor.requires_grad for tensor in tensors]


def reject_forward_mode(name: str, tensor: Tensor) -> None:
    """Forward-mode derivatives would be dropped below autograd, without a word: refuse them here.

    Raises:
        RuntimeError: the tensor carries a tangent.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if forward_ad.unpack_dual(tensor).tangent is not None:
        raise RuntimeError(
            f"{name}: carries a forward-mode tangent, and the operators of fastmmd differentiate in reverse mode only: "
            "use backward(), torch.autograd.grad or torch.autograd.functional.vjp"
        )


def apply_gradient(grad: Tensor, gradient: Tensor, variables: list[Tensor], shared: bool) -> Tensor:
    """grad [B] times the gradient [B, ...] in one input, which the forward pass made.

    The saved gradient is data to autograd, so a second derivative through it would be a silent zero. Every input of
    the operator travels along to make the result depend on all of them, and differentiating that raises.

    Args:
        shared: the input is the same for the whole batch: sum over B.

    Raises:
        RuntimeError: the forward pass ran without this gradient.
    """
    if gradient.ndim == 1:  # the empty tensor that stands for a gradient not asked for; gradients are [B, ...]
        raise RuntimeError("the forward pass did not compute the gradient in an input that needs it")
    return torch.ops.fastmmd.apply_gradient(grad, gradient, variables, shared)  # type: ignore[no-any-return]


def _apply_gradient(grad: Tensor, gradient: Tensor, variables: list[Tensor], shared: bool) -> Tensor:
    product = grad.reshape(-1, *[1] * (gradient.ndim - 1)) * gradient
    return (product.sum(0) if shared else product).to(gradient.dtype)


def _without_autocast(implementation: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        device = _device_type(arguments)
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return implementation(*arguments)
        return implementation(*arguments)

    return run


def _device_type(arguments: Sequence[Any]) -> str:
    return next(argument.device.type for argument in arguments if isinstance(argument, Tensor))


define(
    "apply_gradient(Tensor grad, Tensor gradient, Tensor[] variables, bool shared) -> Tensor",
    _apply_gradient,
    lambda grad, gradient, variables, shared: gradient.new_empty(gradient.shape[1:] if shared else gradient.shape),
)
