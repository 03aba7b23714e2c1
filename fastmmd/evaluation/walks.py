"""Paths and grids in the space of codes: interpolations, percentiles of the prior, walks along its shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fastmmd.evaluation.sampling import chain, with_codes
from fastmmd.nn import Autoencoder
from fastmmd.nn.inputs import check_data
from fastmmd.ops.arguments import check_int
from fastmmd.priors import Gaussian, MixturePrior, Prior, SwissRoll, Uniform

F64 = torch.float64
_STRAIGHT = 1e-6  # sine of the angle below which two codes have no arc between them: parallel, opposite or zero


def lerp(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Codes on the straight line between two codes, both ends included: [..., D], [..., D] -> [..., count, D].

    Raises:
        ValueError, TypeError: `count` is less than 2, or the shapes differ.
    """
    t = _weights(first, second, count).to(first)
    return torch.lerp(first.unsqueeze(-2), second.unsqueeze(-2), t)


def slerp(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Codes on the arc about the origin between two codes: [..., D], [..., D] -> [..., count, D], ends included.

    sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b with the angle w between a and b (Shoemake 1985). Codes of a
    Gaussian in many dimensions lie near a sphere, inside which a straight line leads (White 2016). Where the arc is
    not defined, for parallel, opposite and zero vectors, the line is straight.

    Raises:
        ValueError, TypeError: `count` is less than 2, or the shapes differ.
    """
    t = _weights(first, second, count).to(first.device)
    a, b = first.to(F64).unsqueeze(-2), second.to(F64).unsqueeze(-2)
    left, right = (torch.nn.functional.normalize(end, dim=-1, eps=torch.finfo(F64).tiny) for end in (a, b))
    # Twice the arc tangent of half the angle: unlike the arc cosine exact for small angles too.
    angle = 2 * torch.atan2((left - right).norm(dim=-1, keepdim=True), (left + right).norm(dim=-1, keepdim=True))
    sine = angle.sin()
    zero = (left == 0).all(-1, keepdim=True) | (right == 0).all(-1, keepdim=True)
    arc = ((1 - t) * angle).sin() / sine * a + (t * angle).sin() / sine * b
    return torch.where((sine < _STRAIGHT) | zero, torch.lerp(a, b, t), arc).to(first.dtype)


Path = Literal["linear", "spherical"]
PATHS: dict[Path, Callable[[Tensor, Tensor, int], Tensor]] = {"linear": lerp, "spherical": slerp}


@torch.no_grad()
def interpolate(
    model: Autoencoder,
    first: Tensor,
    second: Tensor,
    count: int,
    *,
    path: Path = "linear",
    steps: int = 0,
    generator: torch.Generator | None = None,
    corrupt: bool = False,
) -> Tensor:
    """Decode `count` codes between the codes of two images, or of each of several pairs.

    Args:
        model: runs in eval mode.
        first, second: [..., data_dim].
        count: at least 2; without steps the ends are the reconstructions of the two images.
        path: "linear" (`lerp`) or "spherical" (`slerp`).
        steps: steps of the Markov chain that correct all codes, the ends too (Creswell et al. 2016; see `chain`).
        generator, corrupt: of the chain.

    Returns:
        [..., count, data_dim].

    Raises:
        ValueError, TypeError: naming the argument.
    """
    model = with_codes(model)
    if path not in PATHS:
        raise ValueError(f"path: got {path!r}, expected one of {', '.join(PATHS)}")
    if first.shape != second.shape:
        raise ValueError(f"second: got shape {list(second.shape)}, expected first's, {list(first.shape)}")
    rows, ends = first.shape[:-1], []
    for name, images in (("first", first), ("second", second)):
        images = check_data(model, images.flatten(0, -2) if images.ndim > 1 else images[None], name)
        ends.append(model.encode(images).unflatten(0, rows or (1,)))
    codes = PATHS[path](ends[0], ends[1], count)
    for state in chain(model, codes.flatten(0, -2), steps, generator, corrupt=corrupt):
        images = state.images
    return images.reshape(*rows, count, -1)


def percentile_grid(prior: Prior, count: int = 15, dims: tuple[int, int] = (0, 1)) -> Tensor:
    """Codes at the percentiles of two dimensions of the prior, the others at their medians: [count, count, D].

    The cells have equal probability (Kingma and Welling 2014, figure 4). They lie as in a plot: dimension `dims[0]`
    grows from column to column, `dims[1]` falls from row to row.

    Args:
        prior: Gaussian (one with a full covariance: along its principal axes) or Uniform.
        count: percentiles (i + 1/2) / count.
        dims: two different dimensions.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    levels = _levels(count)
    across, up = dims
    if across == up or not all(0 <= dim < prior.dim for dim in dims):
        raise ValueError(f"dims: got {dims}, expected two different ones of 0..{prior.dim - 1}")
    u = torch.full((count, count, prior.dim), 0.5, dtype=F64)
    u[..., across] = levels
    u[..., up] = levels.flip(0)[:, None]
    return _from_unit_cube(prior, u)


def percentile_walks(prior: Prior, count: int = 15) -> Tensor:
    """One walk for each dimension through its percentiles, the others at their medians: [D, count, D].

    Args:
        prior: Gaussian (one with a full covariance: along its principal axes) or Uniform.
        count: percentiles (i + 1/2) / count.
    """
    levels = _levels(count)
    u = torch.full((prior.dim, count, prior.dim), 0.5, dtype=F64)
    for dim in range(prior.dim):
        u[dim, :, dim] = levels
    return _from_unit_cube(prior, u)


def component_walks(prior: MixturePrior, count: int = 15) -> Tensor:
    """Along the principal axis of every component of a mixture, at its percentiles, outwards: [K, count, D].

    Args:
        prior: GaussianMixture or Gaussian.
        count: percentiles (i + 1/2) / count of the component along its axis.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    if not isinstance(prior, MixturePrior):
        raise TypeError(f"prior: got {type(prior).__name__}, expected GaussianMixture or Gaussian")
    components = prior.components()
    means = components.means
    variance, longest = components.eigenvalues.max(1)
    if components.eigenvectors is None:
        axes = torch.nn.functional.one_hot(longest, prior.dim).to(F64)
    else:
        axes = components.eigenvectors[torch.arange(len(means)), :, longest]
    # An axis has no sign of its own. Outwards from the center, else towards where its largest entry grows.
    center = components.weights @ means
    outward = ((means - center) * axes).sum(1)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))[:, 0]
    sign = torch.where(outward.abs() > 1e-9 * (1 + (means - center).norm(dim=1)), outward, largest).sign()
    reach = variance.sqrt()[:, None] * torch.special.ndtri(_levels(count))
    walks: Tensor = means[:, None] + reach[..., None] * (sign[:, None] * axes)[:, None]
    return walks.float()


def roll_walk(prior: SwissRoll, count: int = 40) -> Tensor:
    """Along the middle of the swiss roll, from inside outwards, in steps of equal probability: [count, 2].

    `.unflatten(0, (10, -1))` makes ten walks of it, one through each tenth: class i of the prior is walk i.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    if not isinstance(prior, SwissRoll):
        raise TypeError(f"prior: got {type(prior).__name__}, expected SwissRoll")
    root = _levels(count).sqrt()
    angle = 2 * math.pi * prior.turns * root
    return (prior.radius * root[:, None] * torch.stack([angle.cos(), angle.sin()], 1)).float()


def _levels(count: int) -> Tensor:
    return (torch.arange(check_int("count", count), dtype=F64) + 0.5) / count


def _weights(first: Tensor, second: Tensor, count: int) -> Tensor:
    if first.shape != second.shape:
        raise ValueError(f"second: got shape {list(second.shape)}, expected first's, {list(first.shape)}")
    return torch.linspace(0, 1, check_int("count", count, 2), dtype=F64).unsqueeze(1)


def _from_unit_cube(prior: Prior, u: Tensor) -> Tensor:
    """The map from independent uniform numbers [..., D] to draws from the prior, monotone in each axis."""
    if isinstance(prior, Uniform):
        low, high = prior.bounds()
        return (low + (high - low) * u).float()
    if not isinstance(prior, Gaussian):
        raise TypeError(f"prior: got {type(prior).__name__}, expected Gaussian or Uniform")
    components = prior.components()
    z: Tensor = torch.special.ndtri(u) * components.eigenvalues[0].sqrt()
    if components.eigenvectors is not None:
        z = z @ components.eigenvectors[0].T
    return torch.add(components.means[0], z).float()
