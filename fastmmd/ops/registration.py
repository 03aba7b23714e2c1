"""How an operator becomes a `torch.library` operator: schema, implementation, fake kernel, autograd from Python.

Most of the time of a small call goes into converting its arguments between Python and the dispatcher, the more so
where other work has emptied the caches. So `operators` go around it where only autograd would act on a call, and the
autograd kernel runs the implementation itself where the dispatcher would come to it next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

library = torch.library.Library("fastmmd", "DEF")
operators = SimpleNamespace()  # torch.ops.fastmmd, faster

_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
_TENSORS = frozenset({Tensor, torch.nn.Parameter})
_DEVICES = frozenset({torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA})


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Register `fastmmd::schema` for every device. Without `backward`, differentiating it raises.

    A schema has no defaults, no keyword-only arguments and no lists of tensors, and starts with a Tensor. Of several
    outputs only the first is differentiable.

    Args:
        setup_context: called as (ctx, inputs, output), inputs being all arguments.
        backward: called as (ctx, grad), grad in the first output; returns the gradients in the Tensor and Tensor?
            arguments, to which ctx.needs_input_grad refers.
    """
    name = schema.split("(", 1)[0]
    library.define(schema)
    kernel = _without_autocast(implementation)
    library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastmmd::{name}", fake, lib=library)
    autograd, direct = _with_autograd(name, kernel, setup_context, backward)
    library.impl(name, autograd, "Autograd", with_keyset=True)
    setattr(operators, name, direct)


def _with_autograd(
    name: str,
    kernel: Callable[..., Any],
    setup_context: Callable[..., None] | None,
    backward: Callable[..., Any] | None,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The autograd kernel and the operator as Python calls it.

    torch.library.register_autograd converts all arguments again on the way to the kernel, and rebuilds the schema to
    look for defaults.
    """
    operator = getattr(torch.ops.fastmmd, name).default
    types = [str(argument.type) for argument in operator._schema.arguments]
    positions = [i for i, kind in enumerate(types) if kind in ("Tensor", "Optional[Tensor]")]

    def below(keyset: Any, arguments: tuple[Any, ...]) -> Any:
        if keyset is None:
            return kernel(*arguments)
        rest = keyset & torch._C._after_autograd_keyset
        with torch._C._AutoDispatchBelowAutograd():
            if rest.highestPriorityTypeId() in _DEVICES:
                return kernel(*arguments)
            return operator.redispatch(rest, *arguments)

    def forward(ctx: Any, *inputs: Any) -> Any:
        keyset, arguments = inputs[-2:]
        output = below(keyset, arguments)
        if setup_context is not None:
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*output[1:])
            ctx.set_materialize_grads(False)  # or those outputs get gradients of zeros, which nothing reads
            setup_context(ctx, arguments, output)
        return output

    def gradients(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if backward is None:
            raise RuntimeError(
                f"fastmmd::{name} cannot be differentiated: the operators of fastmmd have no second derivative; "
                "create_graph=True through them works only as long as nothing differentiates the gradient again"
            )
        found = [None] * len(positions) if grad is None else backward(ctx, grad)
        return (*found, None, None)

    members = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
    function: Any = type(f"fastmmd_{name}", (torch.autograd.Function,), members)

    def run(keyset: Any, *arguments: Any) -> Any:
        if torch.is_grad_enabled():
            tensors = [arguments[i] for i in positions]
            if any(tensor is not None and tensor.requires_grad for tensor in tensors):
                return function.apply(*tensors, keyset, arguments)
        return below(keyset, arguments)

    def direct(*arguments: Any) -> Any:
        if _intercepted() or not all(_is_plain(arguments[i]) for i in positions):
            return operator(*arguments)
        return run(None, *arguments)

    return run, direct


def _intercepted() -> bool:
    """Whether anything but autograd looks at calls of operators: compilers, modes, transforms, the profiler."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )


def _is_plain(tensor: Tensor | None) -> bool:
    """Whether the kernels take the tensor as it is: no subclass, on a device, nothing lazy."""
    if tensor is None:
        return True
    keys = torch._C._dispatch_keys(tensor) & torch._C._after_ADInplaceOrView_keyset
    return type(tensor) in _TENSORS and keys.highestPriorityTypeId() in _DEVICES


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


def apply_gradient(grad: Tensor, gradient: Tensor, variables: Sequence[Tensor | None], shared: bool) -> Tensor:
    """grad [B] (or [1, N], one for each row) times the gradient [B, ...] in one input, which the forward pass made.

    The saved gradient is data to autograd, so a second derivative through it would be a silent zero. Every input of
    the operator travels along to make the result depend on all of them, and differentiating that raises.

    Args:
        variables: the six inputs of mmd2 that have gradients.
        shared: the input is the same for the whole batch: sum over B.

    Raises:
        RuntimeError: the forward pass ran without this gradient.
    """
    if gradient.ndim == 1:  # the empty tensor that stands for a gradient not asked for; gradients are [B, ...]
        raise RuntimeError("the forward pass did not compute the gradient in an input that needs it")
    if not torch.is_grad_enabled():  # no second derivative can follow
        if not shared and type(gradient) is Tensor and not _keeps_graph():
            with suppress(RuntimeError):  # of vmap, which is_grads_batched uses
                return gradient.mul_(_per_member(grad, gradient))  # nothing reads it again: no second copy of it
        return _apply_gradient(grad, gradient, *variables, shared)
    return operators.apply_gradient(grad, gradient, *variables, shared)  # type: ignore[no-any-return]


def _apply_gradient(grad: Tensor, gradient: Tensor, *rest: Any) -> Tensor:
    *_, shared = rest
    if shared:
        return (grad[:, None] * gradient).sum(0).to(gradient.dtype)
    return _per_member(grad, gradient) * gradient


def _per_member(grad: Tensor, gradient: Tensor) -> Tensor:
    return grad.to(gradient.dtype).reshape(*grad.shape, *[1] * (gradient.ndim - grad.ndim))


def _without_autocast(implementation: Callable[..., Any]) -> Callable[..., Any]:
    def run(first: Tensor, *others: Any) -> Any:
        device = first.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return implementation(first, *others)
        return implementation(first, *others)

    return run


define(
    "apply_gradient(Tensor grad, Tensor gradient, Tensor? x, Tensor? y, Tensor? x_weights, Tensor? y_weights, "
    "Tensor? bandwidths, Tensor? kernel_weights, bool shared) -> Tensor",
    _apply_gradient,
    lambda grad, gradient, *rest: gradient.new_empty(gradient.shape[1:] if rest[-1] else gradient.shape),
)
