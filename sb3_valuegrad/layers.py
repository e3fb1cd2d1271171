"""Layers without the cost of calling modules, which for small networks is as much as that of their matrix products."""

from collections.abc import Callable

import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

# In place where nothing else holds the tensor: both keep their result for the gradient, not their argument.
ACTIVATIONS: dict[type[nn.Module], Callable[[th.Tensor], th.Tensor]] = {
    nn.ReLU: th.relu_,
    nn.Tanh: th.tanh_,
    nn.SiLU: F.silu,
}
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # the kernels' numbers for them


def run_layers(network: nn.Module, inputs: th.Tensor) -> th.Tensor:
    """``network(inputs)``, to the bit; whatever is not one of PyTorch's plain layers is called as the module it is."""
    if type(network) is not nn.Sequential or not _is_plain(network) or _has_any_global_hook():
        return network(inputs)
    is_own = False  # whether the tensor was made here, so that the next layer may overwrite it
    for layer in network._modules.values():
        assert layer is not None
        if not _is_plain(layer):
            inputs, is_own = layer(inputs), False  # a hook may have kept it
        elif type(layer) is nn.Linear and len(layer._parameters) == 2:  # its own, not replaced by plain tensors
            weights = layer._parameters
            inputs, is_own = F.linear(inputs, weights["weight"], weights["bias"]), True  # type: ignore[arg-type]
        elif is_own and type(layer) in ACTIVATIONS:
            inputs = ACTIVATIONS[type(layer)](inputs)
        else:
            inputs, is_own = layer(inputs), type(layer) is nn.LayerNorm
    return inputs


def squared_error(output: th.Tensor, target: th.Tensor, reduction: str = "mean") -> th.Tensor:
    """``F.mse_loss``, to the bit, without its broadcasting in Python, which costs more than the kernel and its gradient."""
    return th._C._nn.mse_loss(output, target, REDUCTIONS[reduction])  # type: ignore[arg-type]


def activate(layer: nn.Module, hidden: th.Tensor) -> th.Tensor:
    """``layer(hidden)``, possibly in place of ``hidden``."""
    function = ACTIVATIONS.get(type(layer))
    return function(hidden) if function is not None and _is_plain(layer) else layer(hidden)


def _is_plain(layer: nn.Module) -> bool:
    """Nothing but the layer's own ``forward`` would run: no hook, nothing compiled."""
    return not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or layer._compiled_call_impl
    )
