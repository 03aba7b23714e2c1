"""What the methods of models check in their arguments, and the eval mode in which those run that only answer."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar, get_args

import torch
from torch import Tensor, nn

from ..device_cache import tracing
from ..ops.arguments import FLOATS, check_choice, check_int
from .convolutional import ConvEncoder
from .networks import MLP

if TYPE_CHECKING:
    from .generative import GenerativeModel
    from .trainable import Trainable

Reconstruction = Literal["cross_entropy", "squared_error"]
Output = Literal["sigmoid", "identity"]
STEPS_BETWEEN_LOOKS = 50  # at the values of a batch
SLACK = 1e-3  # that resampling and rounding leave outside [0, 1]

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)


def data_width(encoder: nn.Module, noise_size: int = 0) -> int | None:
    """The columns of data that an encoder takes, besides the noise; None for one that is not of this package."""
    if isinstance(encoder, ConvEncoder):
        return math.prod(encoder.image_shape)
    inputs = encoder.inputs if isinstance(encoder, MLP) else getattr(encoder, "in_features", None)
    return inputs - noise_size if isinstance(inputs, int) else None


def check_output(output: str, reconstruction: str) -> None:
    """What turns the decoder's values into data, and how these are compared; cross-entropy needs a sigmoid.

    Raises:
        ValueError: something else.
    """
    check_choice("reconstruction", reconstruction, get_args(Reconstruction))
    check_choice("output", output, get_args(Output))
    if output == "identity" and reconstruction != "squared_error":
        raise ValueError(
            f"output: got 'identity' with reconstruction={reconstruction!r}, which needs a sigmoid; expected "
            "reconstruction='squared_error'"
        )


def data_of(values: Tensor, output: Output) -> Tensor:
    """The data [B, data_dim] that a decoder's values stand for."""
    return values.sigmoid() if output == "sigmoid" else values


def check_data(
    model: GenerativeModel, x: Tensor, name: str = "x", *, generator: torch.Generator | None = None
) -> Tensor:
    """Data [B, data_dim], or [B, ...] of data_dim numbers each, such as images [B, C, H, W]: flattened, [B, data_dim].

    With an encoder whose width is not known, `data_dim` None, only the dtype and the batch dimension are checked.

    Raises:
        TypeError, ValueError: no dense floating tensor, another width or device; a generator of another device.
    """
    _check_floats(name, x)
    shape, width = list(x.shape), model.data_dim
    wanted = "[B, data_dim]" if width is None else f"[B, {width}] or [B, C, H, W] with C * H * W = {width}"
    if len(shape) < 2:
        raise ValueError(f"{name}: got shape {shape}, expected {wanted}; give a single data point as {name}[None]")
    if width is not None and math.prod(shape[1:]) != width:
        raise ValueError(f"{name}: got shape {shape}, expected {wanted}, the model's data_dim")
    _check_device(name, x, model)
    check_generator(generator, x.device)
    return x.flatten(1) if width is not None and len(shape) > 2 else x


def check_target(model: GenerativeModel, x: Tensor, values: Tensor) -> Tensor:
    """Data in the shape of the decoder's values for them, which may be another where the encoder takes images.

    Raises:
        TypeError, ValueError: as `check_data`; another number of rows or of values in a row.
    """
    x = check_data(model, x)
    if x.shape[0] != values.shape[0] or x.numel() != values.numel():
        raise ValueError(f"x: got shape {list(x.shape)}, but the decoder gives {list(values.shape)} for the codes")
    return x.reshape(values.shape)


def check_codes(model: Trainable, codes: Tensor, name: str = "codes") -> Tensor:
    """Codes [B, code_size].

    Raises:
        TypeError, ValueError: no dense floating tensor, another shape or device.
    """
    _check_floats(name, codes)
    if codes.ndim != 2 or codes.shape[1] != model.code_size:
        raise ValueError(
            f"{name}: got shape {list(codes.shape)}, expected [B, {model.code_size}], the model's codes, such as "
            "losses.codes"
        )
    _check_device(name, codes, model)
    return codes


def check_batch(model: GenerativeModel, x: Tensor, *networks: nn.Module) -> Tensor:
    """A batch to train on, as `check_data` gives it: with enough rows, and values that the decoder can give.

    The values are looked at in the first batch and in every 50th, without waiting for a GPU: there an error comes a
    few batches later. Inside torch.compile, and on devices other than the CPU and CUDA, they are not looked at.

    Args:
        networks: those that run on the rows in training mode, where batch normalization needs two.

    Raises:
        TypeError, ValueError: as `check_data`; no rows; one row with batch normalization or the unbiased estimator;
            NaN, or values outside [0, 1] for a sigmoid.
    """
    x = check_data(model, x)
    if x.shape[0] < 2:
        _check_rows(model, x, networks)
    model.range_watch.look(x, model.output)
    return x


def check_optimizers(model: GenerativeModel, optimizers: object) -> None:
    """The optimizers of `configure_optimizers`, by name.

    Raises:
        TypeError, ValueError: no dictionary, or other names.
    """
    wanted = model.optimizer_names()
    if not isinstance(optimizers, Mapping):
        raise TypeError(
            f"optimizers: got {type(optimizers).__name__}, expected a dictionary with {_listed(wanted)}, as "
            "model.configure_optimizers() returns it"
        )
    if optimizers.keys() != set(wanted):
        raise ValueError(
            f"optimizers: got {_listed(optimizers) or 'none'}, expected {_listed(wanted)}, as "
            "model.configure_optimizers() returns them"
        )


def check_draws(count: int, generator: torch.Generator | None, device: torch.device) -> None:
    """How many draws, 0 or more, and from which generator.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    check_int("count", count, 0)
    check_generator(generator, device)


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    """A random generator of the device, or none.

    Raises:
        TypeError, ValueError: something else, or one of another device.
    """
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator: got {type(generator).__name__}, expected a torch.Generator, such as "
            f'torch.Generator("{device}").manual_seed(0)'
        )
    if generator.device.type != device.type:
        raise ValueError(
            f"generator: got one of {generator.device}, expected one of the model's {device}: "
            f'torch.Generator("{device}")'
        )


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """A module in eval mode; afterwards every part of it is in its own mode again."""
    trained = [part for part in module.modules() if part.training]
    for part in trained:
        part.training = False
    try:
        yield
    finally:
        for part in trained:
            part.training = True


def in_eval_mode(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """A method of a module that runs in eval mode, and leaves the module in its own."""

    @functools.wraps(method)
    def run(self: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with eval_mode(self):
            return method(self, *args, **kwargs)

    return run


class RangeWatch:
    """Looks at the values of the first batch and of every 50th."""

    def __init__(self) -> None:
        self._unseen = 0  # batches that go by until the next look
        self._bounds: _Bounds | None = None  # on their way from a device

    def __reduce__(self) -> tuple[type[RangeWatch], tuple[()]]:
        return RangeWatch, ()  # a copy of a model looks anew; an event cannot be copied

    def look(self, x: Tensor, output: Output) -> None:
        """Judge a batch, or one before that has arrived in the meantime.

        Raises:
            ValueError: NaN or an infinite number, or one outside [0, 1] for a sigmoid.
        """
        if tracing() or x.device.type not in ("cpu", "cuda"):
            return
        if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        if self._bounds is None and self._unseen == 0:
            self._bounds = _bounds(x)
        if self._bounds is None:
            self._unseen -= 1
        elif self._bounds.have_arrived():
            numbers, self._bounds = self._bounds.numbers, None
            try:
                low, high = numbers.tolist()
            except RuntimeError:  # under vmap a tensor has no values to read
                return
            _judge(low, high, output)  # where it raises, the next batch is looked at as well
            self._unseen = STEPS_BETWEEN_LOOKS - 1


class _Bounds(NamedTuple):
    """The smallest and the largest number of a batch, both NaN if one is."""

    numbers: Tensor  # [2], on the host
    arrival: torch.cuda.Event | None

    def have_arrived(self) -> bool:
        return self.arrival is None or self.arrival.query()


def _bounds(x: Tensor) -> _Bounds:
    numbers = torch.stack(torch.aminmax(x.detach())).double()
    if x.device.type == "cpu":
        return _Bounds(numbers, None)
    with torch.cuda.device(x.device):
        host = torch.empty(2, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        arrival = torch.cuda.Event()
        arrival.record()
    return _Bounds(host, arrival)


def _judge(low: float, high: float, output: Output) -> None:
    if math.isnan(low):
        raise ValueError("x: got NaN, expected numbers: leave those data points out, or fill them with x.nan_to_num()")
    if math.isinf(low) or math.isinf(high):
        raise ValueError(f"x: got values from {low:g} to {high:g}, expected finite ones: leave those data points out")
    if output == "sigmoid" and not -SLACK <= low <= high <= 1 + SLACK:
        raise ValueError(
            f"x: got values from {low:g} to {high:g}, expected [0, 1] as from the decoder's sigmoid: divide images of "
            "0..255 by 255, or read them with torchvision's ToTensor(); for real-valued data make the model with "
            'reconstruction="squared_error", output="identity"'
        )


def _check_floats(name: str, tensor: Tensor) -> None:
    """A dense floating tensor."""
    if not isinstance(tensor, Tensor):
        batch = isinstance(tensor, list | tuple)
        remedy = f"unpack a batch as {name}, labels = batch" if batch else f"torch.as_tensor({name})"
        raise TypeError(f"{name}: got {type(tensor).__name__}, expected a torch.Tensor: {remedy}")
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        remedy = f"torch.nested.to_padded_tensor({name}, 0.0)" if tensor.is_nested else f"{name}.to_dense()"
        raise TypeError(f"{name}: got a {kind} tensor, expected a dense one: {remedy}")
    if tensor.dtype not in FLOATS:
        remedy = f"{name}.float() / 255 for images of 0..255" if tensor.dtype == torch.uint8 else f"{name}.float()"
        raise TypeError(
            f"{name}: got dtype {tensor.dtype}, expected float16, bfloat16, float32 or float64; convert with {remedy}"
        )


def _check_device(name: str, tensor: Tensor, model: GenerativeModel) -> None:
    """The device of the model's weights, the encoder's first, if it has any."""
    weight = next(model.parameters(), None)
    if weight is not None and weight.device != tensor.device:
        raise ValueError(
            f'{name}: got device {tensor.device}, expected {weight.device} as the model: {name}.to("{weight.device}")'
        )


def _check_rows(model: GenerativeModel, x: Tensor, networks: tuple[nn.Module, ...]) -> None:
    """Enough rows, where there are fewer than two."""
    remedy = "set drop_last=True in the DataLoader, or a batch size that leaves a larger last batch"
    if x.shape[0] == 0:
        raise ValueError(f"x: got a batch without rows (shape {list(x.shape)}), expected at least one: {remedy}")
    if model.shards is not None:  # those of all processes count
        return
    parts = [part for network in networks for part in network.modules() if part.training]
    if any(isinstance(part, nn.BatchNorm1d) or getattr(part, "least_rows", 1) > 1 for part in parts):
        raise ValueError(f"x: got a batch of one row, but batch normalization needs two to train: {remedy}")
    if getattr(model.regularizer, "estimator", None) == "unbiased":
        raise ValueError(
            f'x: got a batch of one row, but estimator="unbiased" needs two: {remedy}, or take estimator="biased"'
        )


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(repr, names))
