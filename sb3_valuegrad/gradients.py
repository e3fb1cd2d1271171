"""Two things every gradient step needs: parameters that stay out of it, and a step that withholds a bad update."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch as th
from torch._utils import _flatten_dense_tensors

KERNELS = {th.optim.Adam: th._fused_adam_, th.optim.AdamW: th._fused_adamw_}

Gradients = list[list[th.Tensor | None]]
"""For each optimizer the gradient of each of its parameters; None: it has none."""


class Step(NamedTuple):
    """A :func:`guarded_step` that was taken."""

    optimizers: Sequence[th.optim.Optimizer]
    gradients: Gradients
    """as they were applied: clipped"""


_recorded: list[Step] | None = None


@contextmanager
def recorded_steps() -> Iterator[list[Step]]:
    """Keep the gradients of every :func:`guarded_step` inside, in order, so that :func:`step_along` can take the same steps
    somewhere else."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


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
    :return: for each optimizer the norm of its gradient before clipping; and whether the step was withheld (scalar, 1 or 0)
    """
    # backward(), not torch.autograd.grad: that one's gradients have strides of their own for weight matrices, which
    # the fused CPU kernels of torch 2.13 silently take for the parameters'.
    loss.backward()
    if _recorded is not None:  # clipping, below, is in place
        _recorded.append(Step(optimizers, [[p.grad for p in _parameters(optimizer)] for optimizer in optimizers]))
    return _guarded(loss, optimizers, max_grad_norm, after)


def step_along(
    optimizers: Sequence[th.optim.Optimizer], gradients: Gradients, after: th.Tensor | None = None
) -> tuple[list[th.Tensor], th.Tensor]:
    """The step that :func:`guarded_step` takes, with gradients that were computed somewhere else and clipped there."""
    for optimizer, part in zip(optimizers, gradients, strict=True):
        for parameter, gradient in zip(_parameters(optimizer), part, strict=True):
            parameter.grad = gradient
    return _guarded(th.zeros(()), optimizers, None, after)


def _parameters(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@th.no_grad()
def _guarded(
    loss: th.Tensor, optimizers: Sequence[th.optim.Optimizer], max_grad_norm: float | None, after: th.Tensor | None
) -> tuple[list[th.Tensor], th.Tensor]:
    """The step itself, with the gradients that the parameters have."""
    trained = [_trained(optimizer) for optimizer in optimizers]
    norms = [_norm(gradients) if gradients else loss.new_zeros(()) for _, gradients in trained]
    # What is not finite, less itself, is NaN, which differs from itself: two kernels, where isfinite takes four.
    total = sum(norms, start=loss)
    difference = total - total
    withheld = difference.ne_(difference).float()
    if after is not None:
        withheld = withheld.maximum(after)
    taken = 1 - withheld
    for optimizer, (parameters, gradients), norm in zip(optimizers, trained, norms, strict=True):
        if max_grad_norm is not None:
            th.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
        if all(group.get("fused") for group in optimizer.param_groups):
            _fused_step(optimizer, parameters, gradients, withheld, taken)
        elif not withheld:
            optimizer.step()
        for parameter in parameters:
            parameter.grad = None
    return norms, withheld


def _trained(optimizer: th.optim.Optimizer) -> tuple[list[th.Tensor], list[th.Tensor]]:
    """The parameters that have a gradient, and their gradients."""
    pairs = [(parameter, gradient) for parameter in _parameters(optimizer) if (gradient := parameter.grad) is not None]
    return [parameter for parameter, _ in pairs], [gradient for _, gradient in pairs]


def _norm(gradients: list[th.Tensor]) -> th.Tensor:
    """The gradient's norm; one kernel after a copy costs less than one for each of a few small tensors."""
    return th.linalg.vector_norm(_flatten_dense_tensors(gradients))


def _fused_step(
    optimizer: th.optim.Optimizer,
    parameters: list[th.Tensor],
    gradients: list[th.Tensor],
    found_inf: th.Tensor,
    taken: th.Tensor,
) -> None:
    """``optimizer.step()`` where ``found_inf`` is 0, nothing where it is 1; ``taken`` is what it leaves of 1.

    For small networks most of Adam's own ``step`` is preparation in Python. The kernel is called directly where that
    means the same; the first step, which makes the moments, is always the optimizer's own.
    """
    kernel = KERNELS.get(type(optimizer))
    moments = None if kernel is None or not _is_plain(optimizer) else _moments(optimizer, parameters)
    if kernel is None or moments is None:
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
        return
    group = optimizer.param_groups[0]
    moments.together.add_(taken)
    kernel(
        parameters,
        gradients,
        [state["exp_avg"] for state in moments.states],
        [state["exp_avg_sq"] for state in moments.states],
        [],
        moments.counts,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=group["maximize"],
        grad_scale=None,
        found_inf=found_inf,
    )


class _Moments(NamedTuple):
    """What an optimizer keeps about its parameters, looked up once, and their counts of steps as one tensor."""

    source: object
    parameters: list[th.Tensor]
    states: list[dict[str, th.Tensor]]
    counts: list[th.Tensor]
    together: th.Tensor


_known: WeakKeyDictionary[th.optim.Optimizer, _Moments] = WeakKeyDictionary()


def _moments(optimizer: th.optim.Optimizer, parameters: list[th.Tensor]) -> _Moments | None:
    """The states of these parameters; None where one has none yet.

    Each state's count becomes an element of one tensor: to count is then one kernel, not one a parameter. Looked up anew
    whenever the optimizer has other states or counts, as it does after loading.
    """
    known = _known.get(optimizer)
    if known is not None and known.source is optimizer.state and _same(known.parameters, parameters):
        if _same([state["step"] for state in known.states], known.counts):
            return known
    states = [optimizer.state[parameter] for parameter in parameters]
    if not states or not all(states):
        return None
    count = th.stack([state["step"] for state in states])
    for state, element in zip(states, count.unbind(), strict=True):
        state["step"] = element
    known = _Moments(optimizer.state, parameters, states, [state["step"] for state in states], count)
    _known[optimizer] = known
    return known


def _same(some: list[th.Tensor], others: list[th.Tensor]) -> bool:
    """Whether these are the same objects."""
    return len(some) == len(others) and all(map(is_, some, others))


def _is_plain(optimizer: th.optim.Optimizer) -> bool:
    """One group of parameters on the CPU, a learning rate that is a number, and no hooks (nor a step wrapped by one of
    PyTorch's schedulers)."""
    group = optimizer.param_groups[0]
    return (
        len(optimizer.param_groups) == 1
        and not group["amsgrad"]
        and isinstance(group["lr"], float)
        and group["params"][0].device.type == "cpu"
        and "step" not in vars(optimizer)
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
    )
