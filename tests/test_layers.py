"""Plain layers are evaluated without calling modules; the result is the module's own, to the bit, whatever is in it."""

from typing import Any

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from sb3_valuegrad.layers import activate, run_layers, squared_error


class Keeping(nn.Module):
    """A user's layer that keeps what it returns."""

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        self.kept = inputs
        return inputs


NETWORKS: dict[str, Any] = {
    "relu and tanh": lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2), nn.Tanh()),
    "silu and layer norm": lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 2, bias=False)),
    "layer norm and relu": lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)),
    "activation first": lambda: nn.Sequential(nn.ReLU(), nn.Linear(3, 2), nn.Tanh()),
    "activation only": lambda: nn.Sequential(nn.Tanh(), nn.ReLU()),
    "others": lambda: nn.Sequential(nn.Linear(3, 8), nn.ELU(), nn.Flatten(), nn.Linear(8, 2), nn.Softplus()),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 8), nn.ReLU()), nn.ReLU(), nn.Linear(8, 2)),
    "empty": lambda: nn.Sequential(),
    "no sequence": lambda: nn.Linear(3, 2),
    "user's layer": lambda: nn.Sequential(nn.Linear(3, 8), Keeping(), nn.ReLU(), nn.Linear(8, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_values_and_gradients_are_the_modules_own(name: str) -> None:
    th.manual_seed(0)
    network, results = NETWORKS[name](), []
    for evaluate in (network, lambda inputs: run_layers(network, inputs)):
        inputs = th.linspace(-2, 2, 12).view(4, 3).requires_grad_()
        output = evaluate(inputs)
        results.append([output, *th.autograd.grad(output.square().sum(), [inputs, *network.parameters()])])
        assert th.equal(inputs, th.linspace(-2, 2, 12).view(4, 3))  # not overwritten
    for expected, actual in zip(*results, strict=True):
        assert th.equal(expected, actual)


def test_data_is_not_overwritten() -> None:
    """Without a gradient nothing would complain."""
    inputs = th.tensor([[-1.0, 2.0, -3.0]])
    with th.no_grad():
        run_layers(nn.Sequential(nn.ReLU(), nn.Tanh()), inputs)
    assert inputs.tolist() == [[-1.0, 2.0, -3.0]]


def test_what_a_users_layer_keeps_is_not_overwritten() -> None:
    keeping = Keeping()
    network = nn.Sequential(nn.Linear(3, 8), keeping, nn.ReLU())
    inputs = th.randn(4, 3)
    run_layers(network, inputs)
    assert th.equal(keeping.kept, network[0](inputs))


@pytest.mark.parametrize("index", [0, 1, 2, None])
def test_hooks_are_called_and_what_they_keep_is_not_overwritten(index: int | None) -> None:
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2), nn.ReLU())
    seen: list[th.Tensor] = []
    inputs = th.randn(4, 3)
    expected = network(inputs) if index is None else network[: index + 1](inputs)
    (network if index is None else network[index]).register_forward_hook(lambda _, __, output: seen.append(output))
    output = run_layers(network, inputs)
    assert len(seen) == 1 and th.equal(seen[0], expected) and th.equal(output, network(inputs))


def test_global_hooks_are_called() -> None:
    seen: list[nn.Module] = []
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU())
    handle = nn.modules.module.register_module_forward_hook(lambda module, _, __: seen.append(module))
    try:
        run_layers(network, th.randn(4, 3))
    finally:
        handle.remove()
    assert seen == [network[0], network[1], network]


def test_parametrized_pruned_and_replaced_weights_are_used() -> None:
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.utils.parametrizations.spectral_norm(network[0])
    prune.random_unstructured(network[2], "weight", 0.5)
    replaced = nn.Linear(2, 2)
    del replaced.weight
    replaced.weight = th.eye(2)
    network.append(replaced)
    inputs = th.randn(4, 3)
    network.eval()
    assert th.equal(run_layers(network, inputs), network(inputs))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_squared_error_is_pytorchs(reduction: str) -> None:
    output, target = th.randn(2, 7, 3).unbind()
    assert th.equal(squared_error(output, target, reduction), F.mse_loss(output, target, reduction=reduction))


@pytest.mark.parametrize("shape", [(4, 8), (3, 64, 64)], ids=["few", "many"])
def test_the_tanh_of_many_numbers(shape: tuple[int, ...]) -> None:
    """A faster one: within rounding of float32, the gradient, too, and at its ends."""
    th.manual_seed(0)
    given = 3 * th.randn(shape)
    given.view(-1)[:4] = th.tensor([0.0, 1e-4, 200.0, -200.0])
    inputs, expected = given.clone().requires_grad_(), given.double().requires_grad_()
    actual, right = activate(nn.Tanh(), inputs * 1), th.tanh(expected)
    direction = th.randn(shape)
    gradients = th.autograd.grad(actual, inputs, direction)[0], th.autograd.grad(right, expected, direction.double())[0]
    assert (actual - right).abs().max() < 3e-7 and (gradients[0] - gradients[1]).abs().max() < 2e-6
    assert actual.abs().max() <= 1
    # Twice, too.
    second = [
        th.autograd.grad(th.autograd.grad(function(x).sum(), x, create_graph=True)[0].square().sum(), x)[0]
        for function, x in ((lambda x: activate(nn.Tanh(), x * 1), inputs), (th.tanh, expected))
    ]
    assert (second[0] - second[1]).abs().max() < 1e-5
