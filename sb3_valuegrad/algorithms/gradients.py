"""Two things every gradient step needs: parameters that stay out of it, and a step that withholds a bad update."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch as th


@contextmanager
def frozen(parameters: Iterable[th.nn.Parameter]) -> Iterator[None]:
    """Build the graph inside without these parameters: no gradient reaches them, and no time is spent on theirs.

    Derivatives with respect to the networks' *inputs* are kept. Parameters that were frozen already stay so.
    """
    live = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in live:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in live:
            parameter.requires_grad = True


def guarded_step(optimizer: th.optim.Optimizer, loss: th.Tensor, max_grad_norm: float | None) -> th.Tensor:
    """Take one optimizer step unless the loss or a gradient is not finite; then the parameters stay as they are.

    The decision is a tensor wherever the optimizer takes one (fused kernels do: ``found_inf`` is how PyTorch's own
    ``GradScaler`` withholds steps), so nothing waits for the value. The caller finds the trouble in the loss or norm.

    :param optimizer: whose parameters hold fresh gradients from ``.backward()``. Not from ``torch.autograd.grad``:
        its strides differ from the parameters', which PyTorch's fused CPU kernels silently get wrong
    :param loss: the loss that was differentiated
    :param max_grad_norm: clip the gradient to this norm; None: leave it
    :return: the norm before clipping
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = th.linalg.vector_norm(th.stack(th._foreach_norm([p.grad for p in parameters])))
    bad = ~th.isfinite(norm + loss.detach())
    if max_grad_norm is not None:
        th.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif not bad:
        optimizer.step()
    optimizer.zero_grad()
    return norm
