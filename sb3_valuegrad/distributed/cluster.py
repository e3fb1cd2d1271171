"""One machine, or an existing cluster by address; and whether its head still answers."""

import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from sb3_valuegrad.errors import UnreachableError

ANSWER_SECONDS, JOIN_SECONDS = 3.0, 15.0
JOIN = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='critical'); ray.shutdown()"


def answers(address: str) -> bool:
    """Whether something listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS):
            return True
    except (OSError, ValueError, OverflowError):
        return False


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray inside; as it was afterwards: if it runs already, it is used and stays.

    :param address: ``host:port`` of a cluster's head; None: this machine alone
    :raises UnreachableError: a ``ValueError``, if no cluster answers there
    """
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in (None, here):
            raise ValueError(f"address={address!r}: this process is connected to {here}; call ray.shutdown() first")
        yield
        return
    _connect(address)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    if address is None:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        return
    if address.startswith("ray://"):
        raise ValueError(
            f"address={address!r}: through Ray's client every gradient would take a detour. Run on a machine of the cluster "
            '(ray start --address=HOST:PORT joins it) and give address="HOST:PORT"'
        )
    if not answers(address):
        raise UnreachableError(
            f"address={address!r} does not answer; start a cluster there with `ray start --head --port=6379` and give "
            "HOST:6379, or give None to learn on this machine alone"
        )
    _try_to_join(address)
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _try_to_join(address: str) -> None:
    """In a process of its own: where something else listens, Ray tries for minutes, and cannot be interrupted.

    :raises UnreachableError: if that fails, or takes too long
    """
    try:
        subprocess.run([sys.executable, "-c", JOIN, address], check=True, capture_output=True, timeout=JOIN_SECONDS)
    except subprocess.TimeoutExpired:
        raise UnreachableError(
            f"address={address!r}: something listens there, but no Ray cluster has answered within {JOIN_SECONDS:g} s; give "
            "the address that `ray start --head` prints, and set RAY_AUTH_MODE=token if the cluster asks for a token"
        ) from None
    except subprocess.CalledProcessError as error:
        cause = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise UnreachableError(
            f"address={address!r}: this machine is not part of a Ray cluster there ({' '.join(cause)}); run "
            f"`ray start --address={address}` on it, with the same version of Ray and the same token"
        ) from error


def check_cores(n_learners: int) -> None:
    """:raises ValueError: if there is not one for each learner"""
    cores = int(ray.cluster_resources().get("CPU", 0))
    if n_learners > cores:
        raise ValueError(f"n_learners={n_learners}, and the cluster has {cores} cores, one for each; use at most {cores}")
