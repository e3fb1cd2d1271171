"""Checks of constructor arguments, and the signature that a user reads."""

import inspect
from numbers import Real
from typing import Any

from stable_baselines3.common.noise import ActionNoise


def check_share(name: str, value: float, most: float = 1.0) -> None:
    """:raises ValueError: if ``value`` is outside [0, most]"""
    if not 0 <= value <= most:
        raise ValueError(f"{name}={value} must be in [0, {most:g}]")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """:raises ValueError: if ``value`` is none of ``choices``"""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; use one of {list(choices)}")


def check_learning_rate(name: str, value: Any, optional: bool) -> None:
    """:raises ValueError: if ``value`` is neither a number nor a schedule"""
    if not (callable(value) or isinstance(value, Real) or (value is None and optional)):
        raise ValueError(
            f"{name}={value!r} must be a number or a schedule (a function of the remaining progress). In YAML write "
            "!!float 1e-3: a plain 1e-3 is a string there"
        )


def check_action_noise(noise: Any) -> None:
    """:raises ValueError: if ``noise`` is neither a standard deviation nor one of SB3's objects"""
    is_deviation = isinstance(noise, Real) and not isinstance(noise, bool) and float(noise) >= 0
    if not (is_deviation or noise is None or isinstance(noise, ActionNoise)):
        raise ValueError(
            f"action_noise={noise!r} must be a standard deviation >= 0, one of SB3's ActionNoise objects, or None to "
            "explore without noise"
        )


def full_signature(algorithm: type, without: tuple[str, ...] = ()) -> inspect.Signature:
    """What a class takes, its parents' arguments included.

    A leaf declares only what its paper adds and hands ``*args, **kwargs`` on; ``help()``, editors and the docs
    still show everything, with the leaf's own defaults: first what can be given by position, as SB3 orders it, then
    the leaf's own, then its parents', ``without`` those that it sets itself.
    """
    found: dict[str, inspect.Parameter] = {}
    for cls in algorithm.__mro__:
        own = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
        for name, parameter in own.items():
            if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
            break
    # What comes after an argument that a child has made keyword-only cannot be given by position either.
    positional: dict[str, inspect.Parameter] = {}
    for name in own:
        if name != "self" and found[name].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            break
        positional.update({name: found[name]} if name in found else {})
    rest = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, p in found.items() if name not in positional]
    return inspect.Signature([p for p in [*positional.values(), *rest] if p.name not in without])
