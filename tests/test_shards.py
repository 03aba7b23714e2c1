"""Calls over the processes of a group: those of one process with all points, value and gradients."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import of_ranks
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import fastmmd
from fastmmd import FourierFeatures, Shards, priors

RANKS = 4
Tensors = dict[str, Tensor]
#: Sizes of the shards of up to four processes; the first of so many.
X_SIZES, Y_SIZES = (23, 0, 41, 9), (17, 30, 1, 12)
WIDE = 40  # dimensions that take products


@dataclass(frozen=True)
class Case:
    """A call of which the tensors named x..., y... are spread, the others the same everywhere."""

    call: Callable[..., Tensor]
    tensors: Callable[[int, int], Tensors]  # of so many points x and y
    exchanges: tuple[str, ...] = ("gather",)


def points(dim: int, dtype: torch.dtype = torch.float32, shift: float = 0.3) -> Callable[[int, int], Tensors]:
    def make(n: int, m: int) -> Tensors:
        generator = torch.Generator().manual_seed(dim)
        x, y = (torch.randn(count, dim, generator=generator, dtype=torch.float64) for count in (n, m))
        return {"x": x.to(dtype), "y": (1.1 * y + shift).to(dtype)}

    return make


def with_weights(make: Callable[[int, int], Tensors]) -> Callable[[int, int], Tensors]:
    def weighted(n: int, m: int) -> Tensors:
        tensors = make(n, m)
        generator = torch.Generator().manual_seed(1)
        for name, count in (("x", n), ("y", m)):
            tensors[f"{name}_weights"] = 0.5 + torch.rand(count, generator=generator).to(tensors[name])
        return tensors

    return weighted


def with_kernel(make: Callable[[int, int], Tensors]) -> Callable[[int, int], Tensors]:
    def tensors(n: int, m: int) -> Tensors:
        given = make(n, m)
        return given | {
            "bandwidths": torch.tensor([0.7, 2.0, 5.0]).to(given["x"]),
            "kernel_weights": torch.tensor([1.0, 0.5, 2.0]).to(given["x"]),
        }

    return tensors


def with_labels(make: Callable[[int, int], Tensors]) -> Callable[[int, int], Tensors]:
    def tensors(n: int, m: int) -> Tensors:
        generator = torch.Generator().manual_seed(2)
        labels = (torch.randint(-1, 3, (count,), generator=generator) for count in (n, m))
        return make(n, m) | dict(zip(("x_labels", "y_labels"), labels, strict=True))

    return tensors


def mmd2(**options: Any) -> Callable[..., Tensor]:
    return lambda group, x, y, **tensors: fastmmd.mmd2(x, y, **(options | tensors), group=group)


def to_prior(**options: Any) -> Callable[..., Tensor]:
    def call(group: Any, x: Tensor, y: Tensor, y_weights: Tensor | None = None, **tensors: Tensor) -> Tensor:
        prior = priors.Gaussian(x.shape[1], 1.2, 0.1)
        return fastmmd.mmd2_to_prior(x, prior, **(options | tensors), group=group)

    return call


FEATURES = FourierFeatures(3, 40, bandwidths=(1.0, 3.0), kernel_weights=(0.5, 1.0), seed=5)


def fourier_mean(group: Any, x: Tensor, y: Tensor, x_weights: Tensor | None = None, **_: Tensor) -> Tensor:
    mean = fastmmd.fourier_mean(x, FEATURES, weights=x_weights, group=group)
    return (mean * torch.linspace(-1, 2, len(mean)).to(mean)).sum()


def fourier_discrepancy(group: Any, x: Tensor, y: Tensor) -> Tensor:
    return fastmmd.fourier_discrepancy(x, y, torch.linspace(0.5, 2, 40).to(x), FEATURES, group=group)


def fourier_ascent(group: Any, x: Tensor, y: Tensor) -> Tensor:
    alpha = torch.ones(40, dtype=x.dtype)
    fastmmd.fourier_ascent(alpha, x, y, FEATURES, 0.3, group=group)
    return (alpha * torch.linspace(0, 1, 40).to(alpha)).sum() + 0 * (x.sum() + y.sum())


def parzen(group: Any, x: Tensor, y: Tensor) -> Tensor:
    """x are samples, the points are the same on all processes; a constant."""
    at = torch.linspace(-2, 2, 15).reshape(5, 3).to(x)
    estimator = fastmmd.ParzenEstimator(at, (0.3, 1.0))
    if len(x):
        estimator.update(x.detach())
    return estimator.log_likelihood(group).sum() + 0 * (x.sum() + y.sum())


SCALES = (0.5, 1.0, 3.0)
CLASSES = {"class_weights": (0.2, 0.5, 0.3), "unconditional_weight": 0.7}
BOTH = ("gather", "ring")
CASES = {
    "gaussian": Case(mmd2(bandwidths=SCALES), points(3), BOTH),
    "float64": Case(mmd2(bandwidths=SCALES), points(3, torch.float64), BOTH),
    "half": Case(mmd2(bandwidths=SCALES), points(3, torch.bfloat16)),
    "near convergence": Case(mmd2(bandwidths=SCALES), points(3, shift=0.01)),
    "unbiased": Case(mmd2(bandwidths=SCALES, estimator="unbiased"), points(3), BOTH),
    "products": Case(mmd2(bandwidths=(4.0, 9.0)), points(WIDE)),
    "laplacian": Case(mmd2(bandwidths=SCALES, kernel="laplacian"), points(3)),
    "rational quadratic": Case(mmd2(bandwidths=SCALES, kernel="rational_quadratic", alpha=1.5), points(3)),
    "energy": Case(mmd2(kernel="energy"), points(5)),
    "weights": Case(mmd2(bandwidths=SCALES), with_weights(points(3)), BOTH),
    "weights, unbiased": Case(mmd2(bandwidths=SCALES, estimator="unbiased"), with_weights(points(3, torch.float64))),
    "kernel": Case(mmd2(), with_kernel(points(3))),
    "kernel, unbiased": Case(mmd2(estimator="unbiased"), with_kernel(points(3)), BOTH),
    "labels": Case(mmd2(bandwidths=SCALES, **CLASSES), with_labels(points(3)), BOTH),
    "labels, weights, unbiased": Case(
        mmd2(bandwidths=SCALES, estimator="unbiased", absent="skip", **CLASSES),
        with_labels(with_weights(points(3, torch.float64))),
        BOTH,
    ),
    "prior": Case(to_prior(bandwidths=SCALES), points(3), BOTH),
    "prior, weights, unbiased": Case(
        to_prior(bandwidths=SCALES, estimator="unbiased"), with_weights(points(3, torch.float64))
    ),
    "prior, kernel": Case(to_prior(), with_kernel(points(3))),
    "fourier_mean": Case(fourier_mean, points(3)),
    "fourier_mean, weights": Case(fourier_mean, with_weights(points(3, torch.float64))),
    "fourier_discrepancy": Case(fourier_discrepancy, points(3)),
    "fourier_ascent": Case(fourier_ascent, points(3)),
    "parzen": Case(parzen, points(3)),
}
RUNS = [
    (name, ranks, exchange)
    for name, case in CASES.items()
    for ranks, exchange in itertools.product((2, 3, RANKS), case.exchanges)
]


def evaluated(case: Case, tensors: Tensors, group: Any = None) -> Tensors:
    """The value and the gradients of a call."""
    inputs = {name: tensor.clone() for name, tensor in tensors.items()}
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items() if tensor.is_floating_point()}
    value = case.call(group, **inputs)
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    found = dict(zip(leaves, gradients, strict=True))
    return {"value": value.detach()} | {name: gradient for name, gradient in found.items() if gradient is not None}


def sizes_of(ranks: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return X_SIZES[:ranks], Y_SIZES[:ranks]


def shard(tensors: Tensors, ranks: int, rank: int) -> Tensors:
    sizes = dict(zip("xy", sizes_of(ranks), strict=True))
    return {
        name: tensor.split(list(sizes[name[0]]))[rank] if name[0] in sizes else tensor
        for name, tensor in tensors.items()
    }


def whole(case: Case, ranks: int) -> Tensors:
    n, m = map(sum, sizes_of(ranks))
    return case.tensors(n, m)


# --- the processes ---


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, images: Tensor) -> Tensor:
        codes: Tensor = self.layers(images)
        return codes


BATCH = 24


def training_loss(encoder: nn.Module, images: Tensor, draws: Tensor, group: Any) -> Tensor:
    """A mean over images beside MMD^2 of all codes."""
    codes = encoder(images)
    return (codes - images[:, :3]).square().sum(1).mean() + 3 * fastmmd.mmd2(codes, draws, SCALES, group=group)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    images, draws = (torch.randn(BATCH, dim, generator=generator) for dim in (6, 3))
    return images, draws


def refusals(rank: int, group: Any) -> list[str]:
    """What processes get that differ, or that have too few points together."""
    x, labels = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    calls: list[Callable[[], object]] = [
        lambda: fastmmd.mmd2(x, x + 1, (1.0 + rank,), group=group),
        lambda: fastmmd.mmd2(x, x + 1, SCALES, estimator=("biased", "unbiased")[rank % 2], group=group),
        lambda: fastmmd.mmd2(x[:, : 3 - rank % 2], x[:, : 3 - rank % 2], SCALES, group=group),
        lambda: fastmmd.fourier_mean(x, FourierFeatures(3, 8, seed=rank), group=group),
        lambda: fastmmd.mmd2(x, x, SCALES, x_weights=torch.ones(4 - rank), group=group),
        lambda: fastmmd.mmd2(x, x, SCALES, x_weights=torch.tensor([1.0, -1.0, 1.0, 1.0 - 2 * rank]), group=group),
        lambda: fastmmd.mmd2(
            x, x, SCALES, x_labels=labels, y_labels=labels, class_weights=(1.0,), unconditional_weight=1.0 + rank,
            group=group,
        ),
        lambda: fastmmd.fourier_mean(x, FEATURES, group=group) if rank else fastmmd.mmd2(x, x, SCALES, group=group),
        lambda: fastmmd.fourier_mean(x[:0], FEATURES, group=group),
        lambda: fastmmd.mmd2(x[:0], x, SCALES, group=group),
        lambda: fastmmd.mmd2(x[: 1 - rank], x, SCALES, estimator="unbiased", group=group),
        lambda: fastmmd.mmd2(x, x, SCALES, x_weights=torch.zeros(4), group=group),
        lambda: fastmmd.mmd2(
            x, x, SCALES, x_labels=torch.zeros(4, dtype=torch.int64), y_labels=torch.ones(4, dtype=torch.int64),
            class_weights=(0.5, 0.5), group=group,
        ),
    ]  # fmt: skip
    return [said(call) for call in calls]


def said(call: Callable[[], object]) -> str:
    try:
        call()
    except (ValueError, TypeError) as error:
        return str(error)
    return "no error"


def replica(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    groups = {ranks: distributed.new_group(list(range(ranks))) for ranks in (1, 2, 3, RANKS)}
    odd = distributed.new_group([1, 3])
    results: dict[Any, Any] = {}
    for name, ranks, exchange in RUNS:
        if rank < ranks:
            case = CASES[name]
            group = Shards(groups[ranks], exchange=exchange)
            results[name, ranks, exchange] = evaluated(case, shard(whole(case, ranks), ranks, rank), group)
    case = CASES["gaussian"]
    if rank < 2:
        part = shard(whole(case, 2), 2, rank)
        results["summed"] = evaluated(case, part, Shards(groups[2], gradients="summed"))
        results["refused"] = refusals(rank, groups[2])
    if rank in (1, 3):
        for exchange in ("gather", "ring"):
            results["odd", exchange] = evaluated(
                case, shard(whole(case, 2), 2, rank // 2), Shards(odd, exchange=exchange)
            )
        copies = copy.deepcopy(Shards(odd)), pickle.loads(pickle.dumps(Shards()))
        assert copies[0].group is odd and copies[1] == Shards()
    else:
        results["outside"] = said(lambda: fastmmd.mmd2(torch.randn(4, 3), torch.randn(4, 3), SCALES, group=odd))
    if rank < 1:
        results["alone"] = evaluated(case, shard(whole(case, 1), 1, 0), groups[1])
    encoder = DistributedDataParallel(Encoder())
    images, draws = (part.chunk(RANKS)[rank] for part in batch())
    training_loss(encoder, images, draws, distributed.group.WORLD).backward()
    results["trained"] = [parameter.grad for parameter in encoder.parameters()]
    torch.save(results, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What each process got."""
    return of_ranks(replica, RANKS, tmp_path_factory.mktemp("ranks"))


# --- the tests ---


def joined(parts: list[Tensors], name: str, scale: float) -> Tensor:
    """The gradient in all points, or in what is the same on all processes."""
    if name[0] in "xy":
        return torch.cat([part[name] for part in parts]) / scale
    return torch.stack([part[name] for part in parts]).sum(0) / scale


@pytest.mark.parametrize(("name", "ranks", "exchange"), RUNS)
def test_as_one_process(found: list[dict[Any, Any]], name: str, ranks: int, exchange: str) -> None:
    parts = [found[rank][name, ranks, exchange] for rank in range(ranks)]
    expected = evaluated(CASES[name], whole(CASES[name], ranks))
    assert all(torch.equal(part["value"], parts[0]["value"]) for part in parts)
    torch.testing.assert_close(parts[0]["value"], expected.pop("value"), rtol=1e-6, atol=1e-8)
    assert expected
    for key, gradient in expected.items():
        together = joined(parts, key, ranks)
        assert together.dtype == gradient.dtype
        tolerance = {torch.bfloat16: 8e-3, torch.float64: 1e-12}.get(gradient.dtype, 2e-6)
        if key in ("bandwidths", "kernel_weights"):  # sums in which the pairs' terms cancel
            tolerance = 2e-5
        assert (together - gradient).abs().max() <= tolerance * gradient.abs().max(), key


def test_summed_gradients(found: list[dict[Any, Any]]) -> None:
    parts = [found[rank]["summed"] for rank in range(2)]
    expected = evaluated(CASES["gaussian"], whole(CASES["gaussian"], 2))
    for name in "xy":
        torch.testing.assert_close(joined(parts, name, 1), expected[name], rtol=1e-5, atol=1e-8)


def test_a_group_of_one(found: list[dict[Any, Any]]) -> None:
    expected = evaluated(CASES["gaussian"], whole(CASES["gaussian"], 1))
    for name, value in found[0]["alone"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-8)


def test_parameters_under_distributed_data_parallel(found: list[dict[Any, Any]]) -> None:
    """Their averaged gradients are those of one process with the whole batch; those of each shard's own MMD are not."""
    encoder = Encoder()
    images, draws = batch()
    training_loss(encoder, images, draws, None).backward()
    for parameter, gradient in zip(encoder.parameters(), found[0]["trained"], strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)


def test_the_mean_over_shards_is_another_quantity() -> None:
    """The biased estimator of N points exceeds MMD^2 by about 2 (k(0) - E k) / N, that of a shard by R times that."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 256, 3, generator=generator)
    together = fastmmd.mmd2(x, y, (1.0,))
    apart = torch.stack([fastmmd.mmd2(a, b, (1.0,)) for a, b in zip(x.chunk(8), y.chunk(8), strict=True)]).mean()
    assert 5 < apart / together < 12


def test_refusals(found: list[dict[Any, Any]]) -> None:
    first, second = (found[rank]["refused"] for rank in range(2))
    texts = (
        "different settings", "different settings", "different settings", "seed 1",
        ("rank 1 with an error, x_weights: got shape [3]", "x_weights: got shape [3]"), "weights that sum to 0",
        "unconditional_weight=2.0", "fourier_mean", "no point", "x: got 0 points", "x: got 1 points",
        "weights that sum to 0", "x_labels: got 0 points of class 1",
    )  # fmt: skip
    for text, said in zip(texts, zip(first, second, strict=True), strict=True):
        if text is not None:
            wanted = text if isinstance(text, tuple) else (text, text)
            assert all(part in one for part, one in zip(wanted, said, strict=True)), said


def test_a_group_of_some_processes(found: list[dict[Any, Any]]) -> None:
    expected = evaluated(CASES["gaussian"], whole(CASES["gaussian"], 2))
    for exchange in ("gather", "ring"):
        parts = [found[rank]["odd", exchange] for rank in (1, 3)]
        assert torch.equal(parts[0]["value"], parts[1]["value"])
        for name in "xy":
            torch.testing.assert_close(joined(parts, name, 2), expected[name], rtol=1e-5, atol=1e-8)
    assert all("this process is not in it" in found[rank]["outside"] for rank in (0, 2))


def test_a_group_without_processes() -> None:
    x = torch.randn(4, 2)
    with pytest.raises(RuntimeError, match="torchrun"):
        fastmmd.mmd2(x, x, (1.0,), group=Shards())
    with pytest.raises(ValueError, match="exchange: got 'broadcast'"):
        Shards(exchange="broadcast")  # type: ignore[arg-type]
