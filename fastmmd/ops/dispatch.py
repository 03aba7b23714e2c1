"""How an operation becomes a PyTorch operator, on public interfaces of PyTorch alone.

An operation `mmd2` is two operators and a `torch.autograd.Function`. `fastmmd::_mmd2` has the kernel and a fake kernel,
opaque to compilers, fake tensors, dispatch modes and vmap. The Function around it has the derivative, with a separate
`setup_context` as transforms of `torch.func` require. `fastmmd::mmd2` is the Function as an operator, for
`torch.compile`, which need not trace into it. Eager calls go to the Function itself, or to the kernel where nothing is
to be differentiated, and pass through the dispatcher once. `torch.library.register_autograd` would be shorter, but it
dispatches twice, and a call for a batch of 64 points or fewer would take half as long again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

library = torch.library.Library("fastmmd", "DEF")


def define(
    implementation: Callable[P, R],
    fake: Callable[..., R],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
    backward: Callable[[Any, Tensor], Sequence[Tensor | None]] | None = None,
    mutates: Sequence[str] = (),
) -> Callable[P, R]:
    """Registers `fastmmd::NAME` for all devices and returns what calls it; without `backward`, differentiating raises.

    Args:
        implementation: `_NAME`, a function of which the first argument is a tensor; its annotations give the schema,
            which has no defaults and no lists of tensors. Of several outputs only the first is differentiable.
        fake: takes the same arguments and returns empty tensors of the shapes and dtypes of the outputs.
        setup_context: called as (ctx, inputs, output), inputs being all arguments.
        backward: called as (ctx, gradient in the first output); returns the gradients in the leading arguments.
        mutates: names of the arguments that are changed in place.
    """
    inner = implementation.__name__
    name = inner.removeprefix("_")
    schema = torch.library.infer_schema(implementation, mutates_args=mutates)
    library.define(inner + schema)
    library.impl(inner, prepared(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastmmd::{inner}", fake, lib=library)
    kernel = getattr(torch.ops.fastmmd, inner).default
    function = _function(name, kernel, len(inspect.signature(implementation).parameters), setup_context, backward)

    def eager(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            for argument in arguments:  # a loop: half the time of any(...)
                if isinstance(argument, Tensor) and argument.requires_grad:
                    return function.apply(*arguments)
        return kernel(*arguments)

    library.define(name + schema)
    library.impl(name, eager, "CompositeImplicitAutograd")
    operator = getattr(torch.ops.fastmmd, name).default

    def call(*arguments: P.args, **named: P.kwargs) -> R:
        output: R = operator(*arguments) if torch.compiler.is_compiling() else eager(*arguments)
        return output

    return call


def _function(
    name: str,
    kernel: Callable[..., Any],
    count: int,
    setup: Callable[[Any, tuple[Any, ...], Any], None] | None,
    gradients: Callable[[Any, Tensor], Sequence[Tensor | None]] | None,
) -> Any:
    def forward(*inputs: Any) -> Any:
        return kernel(*inputs)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if setup is not None:
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*output[1:])
            ctx.set_materialize_grads(False)  # or those outputs get gradients of zeros, which nothing reads
            setup(ctx, inputs, output)

    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients is None:
            raise RuntimeError(
                f"fastmmd::{name} cannot be differentiated: the operators of fastmmd have no second derivative; "
                "create_graph=True through them works only as long as nothing differentiates the gradient again"
            )
        leading = () if grad is None else gradients(ctx, grad)
        return (*leading, *[None] * (count - len(leading)))

    def jvp(ctx: Any, *tangents: Tensor | None) -> None:
        raise RuntimeError(f"fastmmd::{name} differentiates in reverse mode only")

    # apply() looks this up at every call; inspecting the function anew costs as much as the rest of it.
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    members = {"forward": forward, "setup_context": setup_context, "backward": backward, "jvp": jvp}
    namespace = {key: staticmethod(member) for key, member in members.items()}
    return type(f"fastmmd_{name}", (torch.autograd.Function,), {**namespace, "generate_vmap_rule": True})


def prepared(implementation: Callable[..., R]) -> Callable[..., R]:
    """With the device of the first argument as the current one, on which kernels are launched, and without autocast."""

    def run(first: Tensor, *others: Any) -> R:
        device = first.device
        on_gpu, autocast = device.type == "cuda", torch.is_autocast_enabled(device.type)
        if not on_gpu and not autocast:
            return implementation(first, *others)
        with (
            torch.cuda.device(device) if on_gpu else nullcontext(),
            torch.autocast(device.type, enabled=False) if autocast else nullcontext(),
        ):
            return implementation(first, *others)

    return run


def needs_grad(*tensors: Tensor | None) -> list[bool]:
    """Which of the arguments an operator has to differentiate in."""
    enabled = torch.is_grad_enabled()
    return [enabled and tensor is not None and tensor.requires_grad for tensor in tensors]
