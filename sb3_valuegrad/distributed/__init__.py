"""Asynchronous learning on Ray: actors, buffers, learners and an evaluator around one optimizer (MPG, sec. IV-C)."""

try:
    import ray  # noqa: F401
except ImportError as error:
    raise ImportError(
        "sb3_valuegrad.distributed needs Ray, which is not installed: pip install 'sb3-valuegrad[ray]' (or pip install ray). "
        "Where Ray has no wheel for this Python, use one that it has: its page on PyPI says which"
    ) from error

from sb3_valuegrad.distributed.trainer import learn

__all__ = ["learn"]
