"""Two things every gradient step needs: parameters that stay out of it, and a step that withholds a bad update."""

from collections.abc import Iterable, Iterator, Sequence
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


def guarded_step(
    loss: th.Tensor,
    optimizers: Sequence[th.optim.Optimizer],
    max_grad_norm: float | None = None,
    after: th.Tensor | None = None,
) -> tuple[list[th.Tensor], th.Tensor]:
    """Differentiate a loss and take one step of each optimizer, unless the loss or a gradient is not finite; then all
    parameters stay as they are.

    The decision is a tensor wherever the optimizer takes one (fused kernels do: ``found_inf`` is how PyTorch's own
    ``GradScaler`` withholds steps), so nothing waits for the value. The caller finds the trouble in the loss or norms.

    :param loss: scalar
    :param optimizers: of the networks that the loss trains; their gradients are consumed
    :param max_grad_norm: clip each optimizer's gradient to this norm; None: leave it
    :param after: what an earlier step on the same data returned as withheld: then this one is withheld, too
    :return: for each optimizer the norm of its gradient before clipping; and whether the step was withheld (bool scalar)
    """
    # backward(), not torch.autograd.grad: that one's gradients have strides of their own for weight matrices, which
    # the fused CPU kernels of torch 2.13 silently take for the parameters'.
    loss.backward()
    trained = [[p for group in o.param_groups for p in group["params"] if p.grad is not None] for o in optimizers]
    norms = th.stack(th._foreach_norm([p.grad for parameters in trained for p in parameters]))
    totals = [th.linalg.vector_norm(part) for part in norms.split([len(parameters) for parameters in trained])]
    withheld = ~th.isfinite(norms.sum() + loss.detach())
    if after is not None:
        withheld = withheld | after
    for optimizer, parameters, norm in zip(optimizers, trained, totals, strict=True):
        if max_grad_norm is not None:
            th.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = withheld.float()  # type: ignore[attr-defined]
            optimizer.step()
        elif not withheld:
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None
    return totals, withheld
