"""mmd2 by matrix products: against the dense float64 formula, and where products cancel."""

from __future__ import annotations

import math
from collections.abc import Iterator

import oracle
import pytest
import torch
from direct import native
from helpers import F32, F64, assert_close, points, positive, value_and_gradients
from memory import measured
from test_mmd import check, sample, scales
from test_native import run_python
from torch import Tensor

import fastmmd
from fastmmd.backends.common import products
from fastmmd.backends.cpu import mmd
from fastmmd.kernels import FAMILIES, Kernel

KERNELS = tuple(name for name, family in FAMILIES.items() if family.bounded)  # others take differences


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """torch fills the memory of empty() with NaN in this mode, so that an output nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


LIMITS = ("PRODUCT_DIMS", "PRODUCT_POINTS", "PRODUCT_POINTS_OF_VALUE", "PRODUCT_POINTS_BESIDE_FIXED")


@pytest.fixture
def by_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products for every size, where the points allow them."""
    for limit in LIMITS:
        monkeypatch.setattr(mmd, limit, 0)
    with fastmmd.backend("native"):
        yield


def takes_products(x: Tensor, y: Tensor, bandwidths: tuple[float, ...] = (10.0,)) -> bool:
    """Whether the points allow products, whose bits are not those of differences."""

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        (result,) = torch.autograd.grad(fastmmd.mmd2(leaf, y, bandwidths), leaf)
        return result

    with pytest.MonkeyPatch.context() as patch, fastmmd.backend("native"):
        for limit in LIMITS:
            patch.setattr(mmd, limit, 0)
        one = gradient()
        patch.setattr(mmd, "PRODUCT_DIMS", 10**9)
        return not torch.equal(one, gradient())


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("dim", [1, 17, 50])
@pytest.mark.parametrize("kernel", KERNELS)
def test_float32(by_products: None, kernel: str, dim: int, estimator: str) -> None:
    check(*sample(45, 77, dim), scales(dim), kernel, estimator)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("kernel", KERNELS)
def test_everything_differentiable_at_once(by_products: None, kernel: str, dtype: torch.dtype, estimator: str) -> None:
    check(
        *sample(53, 41, 20, dtype),
        torch.tensor(scales(20), dtype=dtype),
        kernel,
        estimator,
        positive(3, dtype=dtype),
        positive(53, seed=3, dtype=dtype),
        positive(41, seed=4, dtype=dtype),
        alpha=0.7 if kernel == "rational_quadratic" else 1.0,
    )


@pytest.mark.parametrize("weighted", ["x", "y"])
def test_weights_of_one_side_with_zeros(by_products: None, weighted: str) -> None:
    weights = positive(40, seed=5)
    weights[::3] = 0
    check(*sample(40, 40, 20), scales(20), **{f"{weighted}_weights": weights})


def test_leading_dimensions(by_products: None) -> None:
    check(points(2, 3, 23, 9, seed=1), points(3, 18, 9, seed=2, scale=1.4), scales(9), x_weights=positive(23))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (33, 1), (16, 32), (17, 31), (257, 13), (20, 515)])
def test_sizes(by_products: None, shape: tuple[int, int]) -> None:
    check(*sample(*shape, 6), scales(6))


@pytest.mark.parametrize("needs", range(16))
def test_every_combination_of_gradients(by_products: None, needs: int) -> None:
    x, y = sample(40, 50, 12)
    tensors = (x, y, positive(40), positive(50, seed=1))
    wanted = [bool(needs >> i & 1) for i in range(4)]
    fixed = [None if want else tensor for want, tensor in zip(wanted, tensors, strict=True)]

    def call(function, *leaves):
        xs, ys, xw, yw = (leaf if fix is None else fix for leaf, fix in zip(leaves, fixed, strict=True))
        dtype = xs.dtype if wanted[0] else ys.dtype if wanted[1] else F32
        if function is oracle.mmd2:
            xs, ys, xw, yw, dtype = *(t.to(F64) for t in (xs, ys, xw, yw)), F64
        return function(xs.to(dtype), ys.to(dtype), (3.0, 6.0), x_weights=xw, y_weights=yw)

    leaves = [tensor if want else None for want, tensor in zip(wanted, tensors, strict=True)]
    if not any(wanted):
        assert_close(call(fastmmd.mmd2, *leaves), call(oracle.mmd2, *leaves), atol=1e-8)
        return
    value, gradients = value_and_gradients(lambda *t: call(fastmmd.mmd2, *t), leaves)
    expected, expected_gradients = value_and_gradients(lambda *t: call(oracle.mmd2, *t), leaves)
    assert_close(value, expected, atol=1e-8)
    for index, (gradient, expectation) in enumerate(zip(gradients, expected_gradients, strict=True)):
        if gradient is not None:
            assert_close(gradient, expectation, rows=index < 2, atol=0 if index < 2 else 1e-7, sensitivity=0.1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_self_term_alone(by_products: None, kernel: str) -> None:
    x, w = points(40, 12), positive(40)
    spec = Kernel(kernel, (3.0, 6.0), (1.0, 0.5))
    results = native.mmd2(x[None], None, w[None], None, spec, False, [True, False, True, False, False, False])

    def dense(x: Tensor, w: Tensor) -> Tensor:
        w = w / w.sum()
        k = oracle.gram(x, x, spec.bandwidths, kernel, spec.weights)
        return w @ (k - k.diagonal().mean()) @ w

    value, gradients = value_and_gradients(dense, (x, w), F64)
    cotangent = positive(seed=99).item()
    assert_close(results[0][0], value, rtol=1e-6)
    assert_close(results[1][0] * cotangent, gradients[0], rows=True)
    assert_close(results[3][0] * cotangent, gradients[1])


# --- where products cancel


def placed(name: str, n: int, dim: int, seed: int) -> Tensor:
    """Points for which |p|^2 + |q|^2 - 2 p.q, or p_i sum_j c_ij - sum_j c_ij q_j, loses digits about the origin."""
    z = points(n, dim, seed=seed, dtype=F64)
    centers = points(5, dim, seed=7, dtype=F64)[torch.arange(n) % 5]
    if name == "outlier" and seed == 1:
        z[5] += 1e4
    if name == "duplicates":
        z[n // 2 :] = z[: n - n // 2]
    return {
        "one cloud": z,
        "far from the origin": z + 1e4,
        "far from each other": z + 10 * seed,
        "clusters": centers * 1.5 + z,
        "tight clusters": centers * 100 + z,
        "pairs of tight clusters": centers.sign()[:, :1] * 100 + z,
        "outlier": z,
        "heavy tails": z / points(n, 1, seed=seed + 10, dtype=F64).abs(),
        "duplicates": z,
        "collapsed": z * (1e-3 if seed == 1 else 1),
        "few dimensions": z[:, :4] @ points(4, dim, seed=8, dtype=F64),
    }[name].to(F32)


PLACES = (
    "one cloud", "far from the origin", "far from each other", "clusters", "tight clusters", "pairs of tight clusters",
    "outlier", "heavy tails", "duplicates", "collapsed", "few dimensions",
)  # fmt: skip


BY_DIFFERENCES = ("clusters", "tight clusters", "pairs of tight clusters", "duplicates", "few dimensions")


@pytest.mark.parametrize("width", [0.5, 1.0, 30.0])
@pytest.mark.parametrize("name", PLACES)
def test_gaussian_where_products_cancel(by_products: None, name: str, width: float) -> None:
    x, y = placed(name, 290, 96, 1), placed(name, 270, 96, 2)
    assert takes_products(x, y) or name in BY_DIFFERENCES
    check(x, y, [width * math.sqrt(96)])


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "gaussian"])
@pytest.mark.parametrize("name", ["far from the origin", "clusters", "outlier", "heavy tails", "duplicates"])
def test_other_kernels_where_products_cancel(by_products: None, name: str, kernel: str) -> None:
    with fastmmd.backend("native"):
        check(placed(name, 210, 96, 1), placed(name, 190, 96, 2), scales(96), kernel)


def test_several_bandwidths_of_which_some_are_folded(by_products: None) -> None:
    with fastmmd.backend("native"):
        check(placed("clusters", 210, 96, 1), placed("clusters", 190, 96, 2), [2.0, 5.0, 10.0, 20.0, 40.0, 80.0])


@pytest.mark.parametrize("kernel", FAMILIES)
def test_identical_samples_give_zero(by_products: None, kernel: str) -> None:
    x = points(400, 100).requires_grad_()
    bandwidths = () if kernel == "energy" else ((10.0, 20.0),)
    with fastmmd.backend("native"):
        value = fastmmd.mmd2(x, x.detach().clone(), *bandwidths, kernel=kernel)
        (gradient,) = torch.autograd.grad(value, x)
        assert abs(value.item()) <= 4e-7 * 20 / 400
        assert gradient.abs().max() <= 1e-7
        same = points(1, 100).expand(400, 100)
        assert fastmmd.mmd2(same, same, *bandwidths, kernel=kernel).item() == 0


def test_inputs_are_not_written_to(by_products: None) -> None:
    """Blocks are views of the points where these lie about the origin."""
    for x, y in (sample(45, 77, 20), sample(48, 80, 20), (points(40, 20) + 5, points(50, 20) - 5)):
        before = x.clone(), y.clone()
        fastmmd.mmd2(x.requires_grad_(), y.requires_grad_(), (4.0,)).backward()
        assert torch.equal(x, before[0])
        assert torch.equal(y, before[1])


# --- the choice, precision, determinism, memory


def test_differences_for_what_overflows_or_is_near() -> None:
    wide = points(300, 64)
    assert takes_products(wide, points(300, 64, seed=1))
    with fastmmd.backend("native"):
        for bad in (math.nan, math.inf, -math.inf):
            broken = wide.clone()
            broken[3, 4] = bad
            assert fastmmd.mmd2(broken.requires_grad_(), wide, (10.0,)).isnan()
            assert fastmmd.mmd2(wide.clone().requires_grad_(), broken.detach(), (10.0,)).isnan()
        far = wide.clone()
        far[3, 4] = 3e19
        assert not takes_products(far, wide)
        assert fastmmd.mmd2(far.requires_grad_(), wide, (10.0,)).isfinite()
    twins = wide[:150].repeat(2, 1) + 1e-4 * wide
    assert takes_products(twins, wide)  # few of all pairs are near
    assert not takes_products(*(placed("tight clusters", 300, 64, seed) for seed in (1, 2)))


def everything(x: Tensor, y: Tensor) -> list[Tensor]:
    with fastmmd.backend("native"):
        tensors = (x, y, positive(len(x)), positive(len(y), seed=1), torch.tensor([9.0, 20.0]), torch.ones(2))

        def call(x, y, xw, yw, s, w):
            return fastmmd.mmd2(x, y, s, kernel_weights=w, x_weights=xw, y_weights=yw)

        value, gradients = value_and_gradients(call, tensors)
        return [value.detach(), *(gradient for gradient in gradients if gradient is not None)]


def test_same_bits_every_time_and_whatever_the_precision_asked_for(by_products: None) -> None:
    x, y = points(500, 100, seed=1), points(520, 100, seed=2, scale=1.2)
    first = everything(x, y)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            second = everything(x, y)
    finally:
        torch.set_float32_matmul_precision(before)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 255, 256, 257, 1000, 1040])
def test_even_tiles(count: int) -> None:
    size = products.even_tile_size(count, 256)
    assert size % 16 == 0
    assert 0 < size <= 256
    assert -(-count // size) == -(-count // 256)
    assert size * -(-count // size) - count < 16 * -(-count // size)


def check_kernels() -> None:
    """Every kernel in both dtypes, in a process of its own for each instruction set: test_native.py."""
    for limit in LIMITS:
        setattr(mmd, limit, 0)
    with fastmmd.backend("native"):
        for kernel in FAMILIES:
            for dtype in (F32, F64):
                x, y = sample(45, 77, 20, dtype)
                x[40:] = x[:5] + 1e-3
                check(x, y, [1.0] if kernel == "energy" else torch.tensor(scales(20), dtype=dtype), kernel)


MEMORY = """
import torch
import fastmmd

def run(n):
    x = torch.randn(n, 64, requires_grad=True)
    before = peak()
    fastmmd.mmd2(x, torch.randn(n, 64), (8.0,)).backward()
    return peak() - before

with fastmmd.backend("native"):
    run(1024)
    print(run(4096))
"""


def test_linear_memory() -> None:
    """A dense matrix of 4096 x 4096 float32 takes 64 MB; inputs and gradients of this size take 1 each."""
    (grown,) = measured(MEMORY)
    assert grown < 40


FORK = """
import os
import torch
import fastmmd
x, y = torch.randn(500, 1100), torch.randn(500, 1100)
with fastmmd.backend("native"):
    before = fastmmd.mmd2(x, y, (10.0,))
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.allclose(fastmmd.mmd2(x, y, (10.0,)), before) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(fastmmd.mmd2(x, y, (10.0,)), before)
"""


def test_use_fork_use() -> None:
    done = run_python(FORK, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr[-3000:]
