"""What mmd2 and its relatives take for bandwidths, weights and samples beside the usual, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import F32, F64, assert_close, points, positive, value_and_gradients
from test_mmd import sample

import fastmmd
from fastmmd.ops.arguments import KERNELS


def test_bad_values_in_tensor_bandwidths(backend: str, device: torch.device) -> None:
    """An error where values are read, NaN where a compiler traces, and on a GPU."""
    x, y = sample(9, 8, 2)
    torch._dynamo.reset()
    compiled = torch.compile(lambda s: fastmmd.mmd2(x, y, s), backend="eager", fullgraph=True)
    for bad in (0.0, -1.0, math.nan):
        s = torch.tensor([1.0, bad])
        assert compiled(s).isnan(), bad
        if device.type != "cpu":
            assert fastmmd.mmd2(x, y, s).isnan(), bad
            continue
        for call in (fastmmd.mmd2, lambda *arguments: fastmmd.witness(x, *arguments)):
            with pytest.raises(ValueError, match=r"bandwidths: got \[1.0, .*expected positive finite"):
                call(x, y, s)
        with pytest.raises(ValueError, match="kernel_weights: got .*expected finite"):
            fastmmd.mmd2(x, y, (1.0, 2.0), kernel_weights=torch.tensor([1.0, math.inf]))


def test_a_0d_tensor_is_one_bandwidth(backend: str) -> None:
    x, y = sample(9, 8, 2)
    for function in (fastmmd.mmd2, lambda *arguments, **named: fastmmd.witness(x, *arguments, **named)):
        results = [
            value_and_gradients(lambda s, w, f=function: f(x, y, s, kernel_weights=w), (s, s / 3))
            for s in (torch.tensor(1.5), torch.tensor([1.5]))
        ]
        assert torch.equal(results[0][0], results[1][0])
        for single, listed in zip(results[0][1], results[1][1], strict=True):
            assert single is not None and single.shape == () and torch.equal(single[None], listed)
    assert fastmmd.mmd2(x, y, fastmmd.median_bandwidth(x, y)) > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_sample_beside_itself_gives_exactly_zero(backend: str, kernel: str) -> None:
    """The same tensor, or the same numbers in memory: value 0 without a sign, and every gradient."""
    arguments = () if kernel == "energy" else (torch.tensor([0.7, 2.0], requires_grad=True),)
    base = points(2, 41, 3).requires_grad_()
    w = positive(41).requires_grad_()
    labels = torch.arange(41) % 3
    named = {"x_labels": labels, "y_labels": labels, "class_weights": [1.0, 2.0, 3.0], "unconditional_weight": 0.5}
    calls = {
        "one": (base, base, {}),
        "alias": (base, base.detach(), {}),
        "views": (base[0].T.mT, base[0], {"x_weights": w, "y_weights": w}),
        "half": (base.half(), base.half(), {}),
        "labels": (base[0], base[0].detach(), named),
    }
    calls["half"] = (calls["half"][0], calls["half"][0], {})
    for name, (x, y, options) in calls.items():
        value = fastmmd.mmd2(x, y, *arguments, kernel=kernel, **options)
        assert not value.any() and not value.signbit().any(), name
        for gradient in torch.autograd.grad(value.sum(), (base, *arguments, w), allow_unused=True):
            assert gradient is None or not gradient.any(), name
    with torch.no_grad():
        assert fastmmd.mmd2(base, base, *arguments, kernel=kernel).shape == (2,)
        bad = torch.full((4, 2), math.nan)
        assert fastmmd.mmd2(bad, bad, *arguments, kernel=kernel).isnan()
        other = fastmmd.mmd2(base[0], base[0], *arguments, kernel=kernel, x_weights=w)
        assert other != 0
        assert fastmmd.mmd2(base[0], base[0], *arguments, kernel=kernel, estimator="unbiased") != 0


def test_a_sample_beside_itself_under_compile(backend: str) -> None:
    x = points(20, 3)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: fastmmd.mmd2(x, y, (1.0,)), backend="aot_eager", fullgraph=True)
    assert compiled(x, x).item() == 0
    assert_close(compiled(x, 2 * x), fastmmd.mmd2(x, 2 * x, (1.0,)))


# --- what only values show, on the CPU ---

PRIOR = fastmmd.priors.Gaussian(2)
FEATURES = fastmmd.FourierFeatures(2, 4)
WEIGHTED = {
    "mmd2 x": ("x_weights", lambda w: fastmmd.mmd2(points(4, 2), points(3, 2), x_weights=w)),
    "mmd2 y": ("y_weights", lambda w: fastmmd.mmd2(points(3, 2), points(4, 2), y_weights=w)),
    "witness": ("y_weights", lambda w: fastmmd.witness(points(3, 2), points(3, 2), points(4, 2), y_weights=w)),
    "mmd2_to_prior": ("x_weights", lambda w: fastmmd.mmd2_to_prior(points(4, 2), PRIOR, x_weights=w)),
    "fourier_mean": ("weights", lambda w: fastmmd.fourier_mean(points(4, 2), FEATURES, weights=w)),
    "FixedSample": ("y_weights", lambda w: fastmmd.FixedSample(points(4, 2), y_weights=w)),
}


@pytest.mark.parametrize("function", WEIGHTED)
def test_weights_that_sum_to_zero(function: str) -> None:
    name, call = WEIGHTED[function]
    for weights in ([0.0] * 4, [1.0, -1.0, 0.5, -0.5]):
        with pytest.raises(ValueError, match=f"^{name}: got weights that sum to 0 and cannot be normalized"):
            call(torch.tensor(weights))
    call(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    call(torch.tensor([-1.0, -1.0, 0.0, 1.0]))


def test_weights_that_sum_to_zero_in_one_member() -> None:
    weights = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="x_weights: got weights that sum to 0"):
        fastmmd.mmd2(points(2, 2, 3), points(4, 3), x_weights=weights)
    torch._dynamo.reset()
    compiled = torch.compile(lambda w: fastmmd.mmd2(points(2, 2, 3), points(4, 3), x_weights=w), backend="eager")
    assert compiled(weights).isnan().tolist() == [False, True]


def test_vmap_over_tensors_that_are_checked() -> None:
    """A batch has no values to read: no error that names nothing."""
    x, y = sample(9, 8, 2)
    s, w = torch.tensor([[1.0], [2.0]]), positive(2, 9)
    values = torch.func.vmap(lambda s, w: fastmmd.mmd2(x, y, s, x_weights=w))(s, w)
    for value, one, weights in zip(values, s, w, strict=True):
        assert_close(value, fastmmd.mmd2(x, y, one, x_weights=weights), rtol=1e-6, atol=1e-8)


# --- tensors for the numbers of FourierFeatures, numbers of NumPy ---


@pytest.mark.parametrize(("values", "dtype"), [(1.5, F32), ([1.5, 3.0], F64), ([2.0], torch.float16)])
def test_features_take_the_values_of_tensors(values: float | list[float], dtype: torch.dtype) -> None:
    bandwidths = torch.tensor(values, dtype=dtype)
    numbers = bandwidths.reshape(-1).tolist()
    weights = torch.ones(len(numbers)) / 4
    features = fastmmd.FourierFeatures(3, 4, bandwidths=bandwidths, kernel_weights=weights)
    assert features.bandwidths == tuple(numbers) and features.kernel_weights == (0.25,) * len(numbers)
    same = fastmmd.FourierFeatures(3, 4, bandwidths=numbers, kernel_weights=weights.tolist())
    assert torch.equal(features.frequencies(), same.frequencies())
    bandwidths.mul_(2)
    assert features.bandwidths == tuple(numbers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bandwidths": torch.tensor([1.0, 0.0])}, r"bandwidths: got \[1.0, 0.0\], expected positive"),
        ({"bandwidths": torch.tensor(math.nan)}, r"bandwidths: got \[nan\]"),
        ({"bandwidths": torch.ones(1, 2)}, r"bandwidths: got a torch.float32 tensor of shape \[1, 2\]"),
        ({"bandwidths": torch.ones(2).long()}, "bandwidths: got a torch.int64 tensor"),
        ({"bandwidths": torch.ones(1, requires_grad=True)}, r"bandwidths: .* pass bandwidths.detach\(\)"),
        ({"bandwidths": torch.ones(1, device="meta")}, "bandwidths: .* cannot be read"),
        ({"kernel_weights": torch.tensor([-1.0])}, "kernel_weights: got"),
    ],
)
def test_features_refuse_other_tensors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastmmd.FourierFeatures(3, 4, **options)


def test_numbers_of_numpy() -> None:
    features = fastmmd.FourierFeatures(
        np.int64(3), np.int32(4), bandwidths=np.float32(1.5), seed=np.uint8(7), start=np.int64(2)
    )
    expected = fastmmd.FourierFeatures(3, 4, bandwidths=1.5, seed=7, start=2)
    assert repr(features) == repr(expected)
    assert repr(features.block(np.int64(2**40))) == repr(expected.block(2**40))
    assert fastmmd.nn.MMDAE(np.int64(8), code_size=np.int16(2), hidden=[np.int64(5)]) is not None
    x, y = sample(5, 4, 2)
    value = fastmmd.mmd2(x, y, np.array([1.0, 2.0]), kernel="rational_quadratic", alpha=np.float64(0.5))
    assert torch.equal(value, fastmmd.mmd2(x, y, (1.0, 2.0), kernel="rational_quadratic", alpha=0.5))
    for bad in (np.bool_(True), np.float64(3.0), torch.tensor(3), "3", None):
        with pytest.raises(ValueError, match="dim: got .*, expected a positive int"):
            fastmmd.FourierFeatures(bad, 4)


# --- tensors that the operators do not take ---


def unsupported() -> dict[str, tuple[torch.Tensor, str]]:
    x = points(4, 3)
    nested = {layout: torch.nested.nested_tensor([x, x[:2]], layout=layout) for layout in (torch.strided, torch.jagged)}
    return {
        "coo": (x.to_sparse(), r"got layout torch.sparse_coo, expected torch.strided; convert with {}.to_dense\(\)"),
        "csr": (x.to_sparse_csr(), "got layout torch.sparse_csr"),
        "nested": (nested[torch.strided], r"got a nested tensor, .* {}.to_padded_tensor\(0.0\), with weight 0"),
        "jagged": (nested[torch.jagged], "got a nested tensor"),
    }


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("kind", ["coo", "csr", "nested", "jagged"])
def test_tensors_that_are_not_strided(kind: str) -> None:
    tensor, message = unsupported()[kind]
    x, features = points(4, 3), fastmmd.FourierFeatures(3, 4)
    calls = {
        "x": lambda: fastmmd.mmd2(tensor, x),
        "y": lambda: fastmmd.median_bandwidth(x, tensor),
        "points": lambda: fastmmd.parzen_log_likelihood(tensor, x, 1.0),
        "codes": lambda: fastmmd.fourier_discrepancy(tensor, x, torch.ones(4), features),
        "x_weights": lambda: fastmmd.mmd2(x, x, x_weights=tensor),
        "bandwidths": lambda: fastmmd.mmd2(x, x, tensor),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"^{name}: " + message.format(name)):
            call()


def test_labels_that_are_not_strided() -> None:
    zeros = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TypeError, match="x_labels: got layout torch.sparse_coo"):
        fastmmd.mmd2(points(4, 3), points(4, 3), x_labels=zeros.to_sparse(), y_labels=zeros, class_weights=[1.0])


def test_jit_trace_is_refused() -> None:
    x, y = sample(5, 4, 2)
    with pytest.raises(RuntimeError, match="x: torch.jit.trace cannot record the operators of fastmmd; use torch.comp"):
        torch.jit.trace(lambda a, b: fastmmd.mmd2(a, b), (x, y))


def test_regularizers_take_a_0d_tensor() -> None:
    codes, prior, s = points(9, 3), fastmmd.priors.Gaussian(3), torch.tensor(1.5)
    for kind in (fastmmd.nn.MMD, fastmmd.nn.ClosedFormMMD):
        torch.manual_seed(0)
        value = kind(s)(codes, prior)
        torch.manual_seed(0)
        assert_close(value, kind((1.5,))(codes, prior), rtol=1e-6)
        assert kind(s).kernel_spec() is not None
        assert kind(s.to("meta")).bandwidths.device.type == "meta"  # checked where the tensors are
