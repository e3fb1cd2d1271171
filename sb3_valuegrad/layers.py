"""Layers without the cost of calling modules, which for small networks is as much as that of their matrix products; and
large matrix products by the faster library."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def made_by_intel() -> bool:
    """Whether the processor is Intel's."""
    info = Path("/proc/cpuinfo")  # platform.processor() is empty on many a Linux
    return "GenuineIntel" in (info.read_text() if info.exists() else platform.processor())


# PyTorch leaves float32 products to MKL, which uses AVX-512 on Intel's processors alone. oneDNN, also part of PyTorch, uses
# it wherever it is: on AMD's a large product takes half the time. (On Intel's MKL is the faster one: an update of MAAC took
# a fifth more with oneDNN.) Its calls cost more, so small products stay with MKL everywhere.
USES_ONEDNN = (
    th.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(th.ops.mkldnn, "_linear_pointwise") and not made_by_intel()
)
LARGE = 2**22  # multiplications

# PyTorch's tanh of float32 takes many times as long on a processor as its sigmoid, which is worth a few kernels more.
MANY = 2**13  # numbers


def is_large(multiplications: int, weight: th.Tensor) -> bool:
    """Whether oneDNN should make a product of this size with this matrix; never while something transforms or records the
    code, nor with ``torch.backends.mkldnn`` switched off."""
    return USES_ONEDNN and multiplications >= LARGE and th._C._get_mkldnn_enabled() and _may_be_special(weight)


def _may_be_special(tensor: th.Tensor) -> bool:
    """Whether kernels for float32 on processors may take PyTorch's own one's place."""
    return (
        tensor.dtype == th.float32
        and tensor.device.type == "cpu"
        and not th._C._are_functorch_transforms_active()
        and not th.compiler.is_compiling()
    )


def product(left: th.Tensor, right: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """``left @ right + bias`` of matrices (N, I), (I, O) and a vector (O,), differentiable any number of times."""
    if not is_large(len(left) * right.numel(), right):
        return th.mm(left, right) if bias is None else th.addmm(bias, left, right)
    if th.is_grad_enabled():
        return _LargeProduct.apply(left, right, bias)
    # It knows strides of matrices, but reads a vector as if it were contiguous.
    bias = None if bias is None else bias.contiguous()
    return th.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")


class _LargeProduct(th.autograd.Function):
    """oneDNN's product knows no gradient."""

    @staticmethod
    def forward(ctx: Any, left: th.Tensor, right: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
        ctx.save_for_backward(left, right)
        return product(left, right, bias)  # no gradient is recorded in here

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> tuple[th.Tensor | None, ...]:
        left, right = ctx.saved_tensors
        by_left, by_right, by_bias = ctx.needs_input_grad
        of_left = product(gradient, right.t()) if by_left else None
        of_right = None
        if by_right and right.is_contiguous():
            of_right = product(left.t(), gradient)
        elif by_right:  # transposed: then its gradient, too, so that the parameter's has the parameter's strides
            of_right = product(gradient.t(), left).t()
        return of_left, of_right, gradient.sum(0) if by_bias else None


def run_layers(network: nn.Module, inputs: th.Tensor) -> th.Tensor:
    """``network(inputs)``, to the bit where no product is large; whatever is not one of PyTorch's plain layers is called as
    the module it is."""
    if type(network) is not nn.Sequential or not _is_plain(network) or _has_any_global_hook():
        return network(inputs)
    is_own = False  # whether the tensor was made here, so that the next layer may overwrite it
    for layer in network._modules.values():
        assert layer is not None
        if not _is_plain(layer):
            inputs, is_own = layer(inputs), False  # a hook may have kept it
        elif type(layer) is nn.Linear and len(layer._parameters) == 2:  # its own, not replaced by plain tensors
            weights = layer._parameters
            inputs, is_own = linear(inputs, weights["weight"], weights["bias"]), True  # type: ignore[arg-type]
        elif is_own and type(layer) in ACTIVATIONS:
            inputs = ACTIVATIONS[type(layer)](inputs)
        else:
            inputs, is_own = layer(inputs), type(layer) is nn.LayerNorm
    return inputs


def linear(inputs: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
    """``F.linear``; to the bit where the product is not large."""
    if USES_ONEDNN and inputs.dim() == 2 and inputs.dtype == weight.dtype:
        if is_large(len(inputs) * weight.numel(), weight):
            return product(inputs, weight.t(), bias)
    return F.linear(inputs, weight, bias)


def squared_error(output: th.Tensor, target: th.Tensor, reduction: str = "mean") -> th.Tensor:
    """``F.mse_loss``, to the bit, without its broadcasting in Python, which costs more than the kernel and its gradient."""
    return th._C._nn.mse_loss(output, target, REDUCTIONS[reduction])  # type: ignore[arg-type]


def activate(layer: nn.Module, hidden: th.Tensor) -> th.Tensor:
    """``layer(hidden)``, possibly in place of ``hidden``."""
    function = ACTIVATIONS.get(type(layer))
    if function is None or not _is_plain(layer):
        return layer(hidden)
    if function is th.tanh_ and hidden.numel() >= MANY and _may_be_special(hidden):
        return _ManyTanh.apply(hidden)
    return function(hidden)


class _ManyTanh(th.autograd.Function):
    """``tanh(x) = 2 sigmoid(2x) - 1``, within 2e-7, in place."""

    @staticmethod
    def forward(ctx: Any, hidden: th.Tensor) -> th.Tensor:
        hidden.mul_(2).sigmoid_().mul_(2).sub_(1)
        ctx.mark_dirty(hidden)
        ctx.save_for_backward(hidden)
        return hidden

    @staticmethod
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        (result,) = ctx.saved_tensors
        return th.ops.aten.tanh_backward(gradient, result)


def _is_plain(layer: nn.Module) -> bool:
    """Nothing but the layer's own ``forward`` would run: no hook, nothing compiled."""
    return not (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or layer._compiled_call_impl
    )
