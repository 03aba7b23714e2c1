"""Many at once: Python threads, and workers of a DataLoader after fork and spawn, give the bits of a single thread."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers import F64, FULL, points, positive
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fastmmd
from fastmmd import priors
from fastmmd.nn import MMDAE, ClosedFormMMD, FourierAdversary

PRIOR = priors.GaussianMixture()  # shared by all threads, as its caches are
FEATURES = fastmmd.FourierFeatures(2, 30, bandwidths=(1.0, 2.0, 4.0))
SIZES = [(1, 3), (7, 5), (64, 64), (300, 90), (33, 1500)]


def gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [value.detach(), *torch.autograd.grad(value.sum(), inputs)]


def distances(n: int, m: int, dim: int = 2) -> list[Tensor]:
    x, y = points(n, dim, seed=n).requires_grad_(), points(m, dim, seed=m).requires_grad_()
    out = gradients(fastmmd.mmd2(x, y, (1.0, 2.0, 5.0), x_weights=positive(n)), x, y)
    out += gradients(fastmmd.mmd2(x, y, kernel="energy"), x, y)
    return out + gradients(fastmmd.mmd2(x.to(F64), y.to(F64), (0.5,), kernel="imq"), x)


def fixed(n: int, m: int) -> list[Tensor]:
    x, sample = points(n, 3, seed=n).requires_grad_(), fastmmd.FixedSample(points(m, 3, seed=m))
    return gradients(fastmmd.mmd2(x, sample), x) + [fastmmd.witness(points(9, 3), x.detach(), sample)]


def features(n: int, m: int) -> list[Tensor]:
    x, y, alpha = points(n, 2, seed=n).requires_grad_(), points(m, 2, seed=m), torch.ones(30)
    out = gradients(fastmmd.fourier_mean(x, FEATURES), x)
    out += gradients(fastmmd.fourier_discrepancy(x, y, alpha, FEATURES), x)
    fastmmd.fourier_ascent(alpha, x.detach(), y, FEATURES, 0.5)
    return [*out, alpha, fastmmd.fourier_function(x.detach(), points(60), FEATURES)]


def densities(n: int, m: int) -> list[Tensor]:
    x, y = points(n, 20, seed=n).requires_grad_(), points(m, 20, seed=m)
    estimator = fastmmd.ParzenEstimator(x, (0.5, 2.0))
    for part in y.split(50):
        estimator.update(part)
    return [*gradients(fastmmd.parzen_log_likelihood(x, y, (0.5, 2.0)), x), estimator.log_likelihood()]


def closed_form(n: int, m: int) -> list[Tensor]:
    x = points(n, 2, seed=n).requires_grad_()
    median = fastmmd.median_bandwidth(torch.cat([x.detach(), points(m, 2, seed=m)]))
    loss = ClosedFormMMD((1.0, 2.0 + n % 3))(x, PRIOR)
    return [*gradients(fastmmd.mmd2_to_prior(x, PRIOR, median), x), *gradients(loss, x)]


def trained(n: int, m: int) -> list[Tensor]:
    """With generators of its own, as torch's default one is shared by all threads."""
    regularizer, generator = FourierAdversary(2, count=8, mode="first_order"), torch.Generator().manual_seed(n)
    codes, prior = points(n, 2, seed=m), priors.Gaussian(2)
    prior.sample = lambda count, **_: points(count, 2, seed=count)  # type: ignore[method-assign]
    regularizer.update(codes, prior)
    return [regularizer.alpha, PRIOR.sample(m, generator=generator), regularizer(codes, prior)]


WORK: list[Callable[[int, int], list[Tensor]]] = [distances, fixed, features, densities, closed_form, trained]

#: The reference takes long for large ones, and has no threads of its own to go wrong there.
FEW = 3 if FULL else 2


def jobs(backend: str) -> list[tuple[Callable[[int, int], list[Tensor]], tuple[int, int]]]:
    return [(work, size) for size in (SIZES[:FEW] if backend == "reference" else SIZES) for work in WORK]


def done(index: int, backend: str) -> list[Tensor]:
    work, size = jobs(backend)[index]
    with fastmmd.backend(backend):  # of this thread alone
        return work(*size)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(left, right) and left.dtype == right.dtype for left, right in zip(a, b, strict=True))


@pytest.mark.parametrize("threads", [1, 2] if FULL else [2])
def test_python_threads(backend: str, threads: int) -> None:
    """Six at once, forward and backward, in two orders: three do the same at a time, switched as often as can be."""
    torch.set_num_threads(threads)
    count = len(jobs(backend))
    expected = [done(index, backend) for index in range(count)]
    start = threading.Barrier(6, timeout=60)

    def run(seed: int) -> list[int]:
        torch.set_num_threads(threads)  # it is a setting of each thread
        order = random.Random(seed % 2).sample(range(count), count)
        start.wait()
        return [index for index in order if not same(done(index, backend), expected[index])]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(run, range(6))) == [[]] * 6
    finally:
        sys.setswitchinterval(interval)


def test_first_use_from_many_threads() -> None:
    """Caches of a device, kernels and modules are made once, whoever comes first."""
    priors_of_all = [priors.GaussianMixture() for _ in range(3)]
    x = points(50, 2)
    start = threading.Barrier(8, timeout=60)

    def run(_: int) -> list[Tensor]:
        start.wait()
        found = [fastmmd.mmd2_to_prior(x, prior, (1.0, 3.0)) for prior in priors_of_all]
        return [*found, fastmmd.fourier_mean(x, features), priors_of_all[0].components().means]

    features = fastmmd.FourierFeatures(2, 6, seed=9)
    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(run, range(8))
    assert all(same(first, other) for other in others)


class Jobs(Dataset[Any]):
    """Each item is a job, done inside the worker."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __len__(self) -> int:
        return len(jobs(self.backend))

    def __getitem__(self, index: int) -> tuple[int, list[Tensor]]:
        return os.getpid(), [tensor.detach() for tensor in done(index, self.backend)]


def _alone(batch: list[Any]) -> Any:
    return batch[0]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_loader(backend: str, start: str) -> None:
    """Used before the fork, in the workers and by the parent meanwhile; bit for bit."""
    if start == "spawn" and backend == "reference" and not FULL:
        pytest.skip("FASTMMD_TEST_FULL=1 runs it: two more processes that import torch")
    expected = [done(index, backend) for index in range(len(jobs(backend)))]
    loader = DataLoader(
        Jobs(backend), num_workers=2, multiprocessing_context=start, timeout=100, collate_fn=_alone, batch_size=1
    )
    seen = set()
    for index, (process, result) in enumerate(loader):
        seen.add(process)
        assert same(result, expected[index]), jobs(backend)[index]
        assert same(done(index, backend), expected[index]), jobs(backend)[index]
    assert len(seen) == 2 and os.getpid() not in seen


def test_models_train_in_threads() -> None:
    """Each its own model: the losses of one that trains alone."""

    def run(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        made = MMDAE(16, hidden=(8,), code_size=2, input_dropout=0.0, closed_form=True)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        optimizers = made.configure_optimizers()
        data = torch.rand(64, 16, generator=generator)
        return [made.training_step(data, optimizers)["loss"] for _ in range(5)]

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(same, alone, pool.map(run, range(4))))
