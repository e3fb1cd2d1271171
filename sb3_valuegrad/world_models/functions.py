"""Functions that a user gives: found by their import path, and tried before anything is trained with them."""

import importlib
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch import nn

Function = Callable[..., th.Tensor]


def function_of(name: str, given: Any) -> Any:
    """A function from itself or from its import path.

    :param name: of the argument
    :param given: a function, or "package.module:function"
    :raises ValueError: if it is neither
    """
    if isinstance(given, str):
        return _imported(name, given)
    if not callable(given):
        raise ValueError(f'{name}={given!r} must be a torch function, or its import path "package.module:function"')
    if not isinstance(given, nn.Module) and not _has_import_path(given):
        warnings.warn(
            f"{name}={given!r} has no import path (it is a lambda, a local function, or in the script that runs): "
            "model.save() can only store its code, which another Python version may not read, and policy.save() may fail. "
            "Define it in a module that can be imported.",
            stacklevel=2,
        )
    return given


def _imported(name: str, path: str) -> Any:
    module, colon, attribute = path.partition(":")
    try:
        if not colon:
            raise ValueError("there is no colon in it")
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f'{name}={path!r} is no import path of the form "package.module:function": {error}') from error
    if not callable(found):
        raise ValueError(f"{name}={path!r} leads to {found!r}, which is not a function")
    return found


def _has_import_path(function: Any) -> bool:
    """Whether pickle, which stores functions by their import path, can store this one for other programs."""
    if getattr(function, "__module__", None) == "__main__":
        return False
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def tried(name: str, function: Function, arguments: dict[str, th.Tensor], shape: tuple[int, ...]) -> th.Tensor:
    """What a function returns, if it is a finite tensor of the right shape on the device of its arguments.

    :param name: of the function
    :param function: takes the arguments by position
    :param arguments: tensors by name, rows first
    :param shape: of its result
    :raises ValueError: naming the function and what is wrong
    """
    device = next(iter(arguments.values())).device
    given = ", ".join(f"{what} {tuple(rows.shape)}" for what, rows in arguments.items())
    call = f"{name}, called with {given} on device {str(device)!r},"
    try:
        result = function(*arguments.values())
    except Exception as error:
        raise ValueError(
            f"{call} raised {type(error).__name__}: {error}. It must return a torch tensor, made from and on the device of "
            "its arguments"
        ) from error
    given_shape = tuple(result.shape) if isinstance(result, th.Tensor) else type(result).__name__
    if given_shape != shape:
        raise ValueError(f"{call} must return a tensor of shape {tuple(shape)}, but gave {given_shape}")
    if result.device != device:
        raise ValueError(f"{call} returned a tensor on {str(result.device)!r}; make its constants on obs.device")
    if not th.isfinite(result).all():
        row = int((~th.isfinite(result.reshape(len(result), -1)).all(1)).nonzero()[0])
        at = ", ".join(f"{what}={rows[row].tolist()}" for what, rows in arguments.items())
        raise ValueError(f"{call} returned {result[row].tolist()} at {at}; it must be finite there")
    return result


def check_gradients(name: str, result: th.Tensor, arguments: dict[str, th.Tensor], each: bool) -> None:
    """Whether a gradient passes through a function.

    :param name: of the function
    :param result: what it returned
    :param arguments: what it was given, by name; with gradient
    :param each: it must have one in each of them; False: in any
    :raises ValueError: if it has none, or one that is not finite
    """
    found: Sequence[th.Tensor | None] = [None] * len(arguments)
    if result.requires_grad:
        inputs = list(arguments.values())
        found = th.autograd.grad(result.sum(), inputs, retain_graph=True, allow_unused=True)
    missing = [what for what, gradient in zip(arguments, found, strict=True) if gradient is None]
    if (missing and each) or len(missing) == len(arguments):
        raise ValueError(
            f"{name} is not differentiable in {' or '.join(missing)}: use torch operations on the tensors it is given, no "
            "NumPy, .item(), .detach() or torch.no_grad()"
        )
    for what, gradient in zip(arguments, found, strict=True):
        if gradient is not None and not th.isfinite(gradient).all():
            raise ValueError(f"{name} has a gradient in {what} that is not finite where the environment starts: {gradient}")
