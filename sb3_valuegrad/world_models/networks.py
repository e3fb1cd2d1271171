"""Several networks of one shape, evaluated together."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch as th
from torch import nn

from sb3_valuegrad.layers import activate, is_large, product

# Multiplications in a member's largest layer from which the members' hidden layers together leave the cache: with 200 units
# between 400 and 800 rows (measured on an Intel processor, 0.77 to 0.86 of the time).
MANY_MULTIPLICATIONS = 24 * 10**6


class ParallelMlp(nn.Module):
    """``M`` separate multi-layer perceptrons of the same shape, as batched matrix products where these are small.

    Each member is initialised as PyTorch initialises its own ``nn.Linear`` layers.

    :param members: M
    :param input_dim: length of an input row, the same for all members
    :param output_dim: length of an output row of each member
    :param net_arch: units of each hidden layer
    :param activation_fn: after each hidden layer
    """

    def __init__(self, members: int, input_dim: int, output_dim: int, net_arch: Sequence[int], activation_fn: type[nn.Module]):
        super().__init__()
        self.members = members
        sizes = [input_dim, *net_arch, output_dim]
        layers = [[nn.Linear(size, next_size) for _ in range(members)] for size, next_size in pairwise(sizes)]
        self.weights = nn.ParameterList(th.stack([linear.weight.detach().t() for linear in layer]) for layer in layers)
        self.biases = nn.ParameterList(th.stack([linear.bias.detach()[None] for linear in layer]) for layer in layers)
        self.activation = activation_fn()
        self.largest_layer = max(size * next_size for size, next_size in pairwise(sizes))  # weights

    def forward(self, inputs: th.Tensor, members: int | None = None) -> th.Tensor:
        """Rows for all members (N, input_dim), or for each its own (M, N, input_dim), to (M, N, output_dim).

        :param inputs: the rows
        :param members: only the first so many; None: all
        """
        # The lists' own iterators look each parameter up by its name, which costs as much as a small layer.
        biases, weights = (cast(dict[str, th.Tensor], part._parameters) for part in (self.biases, self.weights))
        layers = list(zip(biases.values(), weights.values(), strict=True))
        if members is not None and members < self.members:
            # Views, no copies.
            layers = [(bias[:members], weight[:members]) for bias, weight in layers]
        if self._is_better_one_by_one(inputs.shape[-2] * self.largest_layer, layers[0][1]):
            return self._one_by_one(inputs, layers)
        hidden = inputs.expand(len(layers[0][0]), *inputs.shape) if inputs.dim() == 2 else inputs
        *layers, last = layers
        for bias, weight in layers:
            hidden = activate(self.activation, th.baddbmm(bias, hidden, weight))
        bias, weight = last
        if weight.shape[-1] == 1:  # a product with one column is slow, one with one row is not
            return th.baddbmm(bias, weight.mT, hidden.mT).mT
        return th.baddbmm(bias, hidden, weight)

    @staticmethod
    def _is_better_one_by_one(multiplications: int, weight: th.Tensor) -> bool:
        # Where gradients are recorded, all members' hidden layers are kept anyway.
        many = multiplications >= MANY_MULTIPLICATIONS and weight.device.type == "cpu" and not th.is_grad_enabled()
        return many or is_large(multiplications, weight)

    def _one_by_one(self, inputs: th.Tensor, layers: list[tuple[th.Tensor, th.Tensor]]) -> th.Tensor:
        """Large products: each member's hidden layers stay in the cache, and the faster library has no batched product."""
        members = len(layers[0][0])
        by_member = [list(zip(bias[:, 0].unbind(), weight.unbind(), strict=True)) for bias, weight in layers]
        outputs = []
        for hidden, *layers_of_one in zip(
            inputs.unbind() if inputs.dim() == 3 else [inputs] * members, *by_member, strict=True
        ):
            for bias, weight in layers_of_one[:-1]:
                hidden = activate(self.activation, product(hidden, weight, bias))
            bias, weight = layers_of_one[-1]
            outputs.append(product(hidden, weight, bias))
        return th.stack(outputs)
