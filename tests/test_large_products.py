"""Products that oneDNN makes: values and gradients against PyTorch's own, and who may keep it from them."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch as th
from small_models import seeded
from torch import nn
from torch.nn import functional as F

from sb3_valuegrad import layers
from sb3_valuegrad.layers import linear, product, run_layers
from sb3_valuegrad.world_models.networks import ParallelMlp

needs_onednn = pytest.mark.skipif(not hasattr(th.ops.mkldnn, "_linear_pointwise"), reason="PyTorch without oneDNN")


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Every product goes to oneDNN; and how many did."""
    calls: list[int] = []
    forward = layers._LargeProduct.forward

    def counted(ctx: Any, *args: Any) -> th.Tensor:
        calls.append(1)
        return forward(ctx, *args)

    monkeypatch.setattr(layers, "USES_ONEDNN", True)
    monkeypatch.setattr(layers, "LARGE", 0)
    monkeypatch.setattr(layers._LargeProduct, "forward", staticmethod(counted))
    yield calls


def matrices(seed: int = 0) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    with seeded(seed):
        return th.randn(33, 17), th.randn(17, 9), th.randn(9)


@needs_onednn
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_product_and_its_gradients(everything_is_large: list[int], transposed: bool, with_bias: bool) -> None:
    left, right, bias = matrices()
    right = right.t().contiguous().t() if transposed else right
    leaves = [part.detach().clone().requires_grad_() for part in ((left, right, bias) if with_bias else (left, right))]
    exact = [part.detach().double().requires_grad_() for part in leaves]
    output, expected = product(*leaves), exact[0] @ exact[1] + (exact[2] if with_bias else 0)
    th.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    assert len(everything_is_large) == 1
    gradients = th.autograd.grad(output.square().sum(), leaves)
    for gradient, of_exact, leaf in zip(gradients, th.autograd.grad(expected.square().sum(), exact), leaves, strict=True):
        th.testing.assert_close(gradient.double(), of_exact, rtol=1e-4, atol=1e-4)
        assert gradient.stride() == leaf.stride()  # fused optimizers take them for the parameter's
    with th.no_grad():
        assert th.equal(product(*leaves), output)


def strided(rows: int, columns: int) -> list[th.Tensor]:
    """Matrices of one size in every way in which they come: views, transposed, expanded, cut out."""
    return [
        th.randn(rows, columns),
        th.randn(columns, rows).t(),
        th.randn(rows, 2 * columns)[:, ::2],
        th.randn(rows, 2 * columns)[:, columns:],
        th.randn(2 * rows, columns)[::2],
        th.randn(2 * columns, rows)[::2].t(),
        th.randn(columns, 2 * rows)[:, ::2].t(),
        th.randn(1, 1).expand(rows, columns),
        th.randn(rows, 1).expand(rows, columns),
        th.randn(1, columns).expand(rows, columns),
    ]


@needs_onednn
def test_any_strides(everything_is_large: list[int]) -> None:
    """A kernel that took strides for granted would read what is not its own."""
    with seeded(0), th.no_grad():
        biases = [None, th.randn(9), th.randn(18)[::2], th.randn(1).expand(9)]
        for left, right, bias in itertools.product(strided(12, 7), strided(7, 9), biases):
            expected = left @ right + (0 if bias is None else bias)
            th.testing.assert_close(product(left, right, bias), expected, rtol=1e-4, atol=1e-5)
        assert product(th.randn(0, 7), th.randn(7, 9)).shape == (0, 9)


@needs_onednn
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_that_are_expanded_or_sparse(everything_is_large: list[int], transposed: bool) -> None:
    """As sums, means and minima send them back."""
    for reduce in (th.sum, lambda out: out.mean(0).sum(), lambda out: out.amin(1).sum(), lambda out: out[:, 0].sum()):
        results = []
        for multiply in (product, lambda left, right, bias: left @ right + bias):
            left, right, bias = (part.requires_grad_() for part in matrices())
            given = right.t().contiguous().t() if transposed else right
            results.append(th.autograd.grad(reduce(multiply(left, given, bias)), (left, right, bias)))
        for actual, expected in zip(*results, strict=True):
            th.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_gradients_of_gradients(everything_is_large: list[int]) -> None:
    """A gradient penalty differentiates twice."""
    results = []
    for multiply in (product, lambda left, right, bias: left @ right + bias):
        leaves = [part.requires_grad_() for part in matrices()]
        first = th.autograd.grad(th.tanh(multiply(*leaves)).sum(), leaves[:2], create_graph=True)
        results.append(th.autograd.grad(first[0].square().sum() + first[1].square().sum(), leaves))
    for actual, expected in zip(*results, strict=True):
        th.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@needs_onednn
@pytest.mark.parametrize("frozen", [False, True])
def test_linear_layers(everything_is_large: list[int], frozen: bool) -> None:
    """The weights of ``nn.Linear`` are transposed, and have gradients of their own strides; none where they are frozen."""
    with seeded(0):
        network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 2))
        inputs = th.randn(12, 5)
    network.requires_grad_(not frozen)
    results = []
    for evaluate in (network, lambda rows: run_layers(network, rows)):
        rows = inputs.clone().requires_grad_()
        output = evaluate(rows)
        output.square().sum().backward()
        results.append([output, rows.grad, *(parameter.grad for parameter in network.parameters())])
        network.zero_grad()
    assert len(everything_is_large) == 3
    for expected, actual in zip(*results, strict=True):
        if frozen and expected is None:
            assert actual is None
            continue
        th.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        assert actual.stride() == expected.stride()


@needs_onednn
@pytest.mark.parametrize("shared_rows", [False, True])
@pytest.mark.parametrize("members", [None, 2])
def test_networks_one_by_one(everything_is_large: list[int], shared_rows: bool, members: int | None) -> None:
    """The same as the batched products."""
    with seeded(0):
        network = ParallelMlp(3, 5, 4, (16, 16), nn.SiLU)
        inputs = th.randn(20, 5) if shared_rows else th.randn(members or 3, 20, 5)
    results = []
    for enabled in (True, False):
        with th.backends.mkldnn.flags(enabled=enabled):
            output = network(inputs, members)
            output.square().sum().backward()
            results.append([output, *(parameter.grad for parameter in network.parameters())])
            network.zero_grad()
    assert len(everything_is_large) == 3 * (members or 3)
    for actual, expected in zip(*results, strict=True):
        th.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        assert actual.shape == expected.shape and actual.stride() == expected.stride()


@pytest.mark.parametrize("members", [None, 2])
def test_many_rows_go_one_by_one_where_nothing_is_differentiated(members: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    one_by_one = ParallelMlp._one_by_one

    def noted(*args: Any) -> th.Tensor:
        called.append(1)
        return one_by_one(*args)

    monkeypatch.setattr(layers, "USES_ONEDNN", False)
    monkeypatch.setattr(ParallelMlp, "_one_by_one", noted)
    with seeded(0):
        network, inputs = ParallelMlp(3, 5, 4, (200, 200), nn.SiLU), th.randn(700, 5)
    expected = network(inputs, members)
    assert not called and expected.requires_grad
    with th.no_grad():
        th.testing.assert_close(network(inputs, members), expected, rtol=1e-4, atol=1e-5)
        assert len(called) == 1
        th.testing.assert_close(network(inputs[:500], members), expected[:, :500], rtol=1e-4, atol=1e-5)
    assert len(called) == 1


@needs_onednn
def test_who_keeps_to_pytorchs_own_products(everything_is_large: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    left, right, bias = matrices()
    assert th.equal(product(left.double(), right.double()), left.double() @ right.double())
    with th.backends.mkldnn.flags(enabled=False):
        assert th.equal(product(left, right, bias), th.addmm(bias, left, right))
        assert th.equal(linear(left, right.t(), bias), F.linear(left, right.t(), bias))
    rows = th.func.vmap(th.func.grad(lambda row: product(row[None], right).sum()))(left)
    th.testing.assert_close(rows, right.sum(1).expand_as(left))
    monkeypatch.setattr(layers, "LARGE", 33 * 17 * 9 + 1)
    assert th.equal(product(left.requires_grad_(), right, bias), th.addmm(bias, left, right))
    assert not everything_is_large
    monkeypatch.setattr(layers, "LARGE", 33 * 17 * 9)
    product(left, right, bias)
    assert len(everything_is_large) == 1
