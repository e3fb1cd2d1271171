"""What every test is held to."""

from collections.abc import Iterator

import pytest
import torch as th


def _torch_state() -> tuple[object, ...]:
    return th.get_default_dtype(), th.get_num_threads(), th.is_grad_enabled(), th.are_deterministic_algorithms_enabled()


@pytest.fixture(autouse=True)
def torch_state_is_left_alone() -> Iterator[None]:
    """No test changes torch's global state: the next one would pass or fail for another's reasons."""
    before = _torch_state()
    yield
    assert _torch_state() == before


@pytest.fixture(autouse=True)
def on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """``device="auto"`` is the CPU on every machine, except in the tests that are about GPUs."""
    if request.module.__name__ != "test_cuda":
        monkeypatch.setattr(th.cuda, "is_available", lambda: False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: learns for ten seconds or more on a free core")
