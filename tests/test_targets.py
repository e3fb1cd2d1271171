"""TD-k and STEVE targets against hand-computed arrays (float64)."""

import pytest
import torch as th

from sb3_valuegrad.returns import steve, steve_weights, td_k_targets, value_expansions
from sb3_valuegrad.rollouts import imagine


def tensor(*rows: list[float]) -> th.Tensor:
    return th.tensor(rows, dtype=th.float64)


def test_td_k_by_hand() -> None:
    rewards = tensor([1.0], [2.0], [4.0])
    value = tensor([8.0])[0]
    alive = tensor([1.0], [1.0], [0.5], [0.5])  # d_1 = 0.5
    expected = tensor([1 + 0.5 * (2 + 0.5 * 0.5 * (4 + 0.5 * 8))], [2 + 0.5 * 0.5 * (4 + 0.5 * 8)], [4 + 0.5 * 8], [8.0])
    th.testing.assert_close(td_k_targets(rewards, alive, value, gamma=0.5), expected, rtol=0, atol=1e-14)


def test_td_k_after_a_certain_end_is_finite() -> None:
    """Where the rollout is over, targets weigh nothing, but 0 times NaN would be NaN."""
    alive = tensor([1.0], [0.0], [0.0])
    targets = td_k_targets(tensor([1.0], [2.0]), alive, tensor([3.0])[0], gamma=0.9)
    assert th.isfinite(targets).all() and targets[0].item() == 1.0


@pytest.mark.parametrize("horizon", [0, 1, 4])
def test_the_first_td_k_target_is_the_value_expansion(horizon: int) -> None:
    generator = th.Generator().manual_seed(0)
    rewards, value = (th.randn(size, generator=generator, dtype=th.float64) for size in ((horizon, 6), (6,)))
    dones = th.rand(horizon, 6, generator=generator, dtype=th.float64)
    alive = th.cat([th.ones(1, 6, dtype=th.float64), (1 - dones).cumprod(0)])
    targets = td_k_targets(rewards, alive, value, gamma=0.95)
    expansion = value_expansions(rewards, alive, value[None], 0.95, [horizon])[0]
    assert targets.shape == (horizon + 1, 6)
    th.testing.assert_close(targets[0], expansion, rtol=0, atol=1e-13)


def test_steve_by_hand() -> None:
    """Variances 0.01, 0.04, 0.16 of two members each: weights 16 : 4 : 1, but the first at most twice the second."""
    expansions = tensor([1.1, 0.9], [2.2, 1.8], [3.4, 2.6])[:, :, None]
    expected = (1 / 0.02 * 1 + 1 / 0.04 * 2 + 1 / 0.16 * 3) / (1 / 0.02 + 1 / 0.04 + 1 / 0.16)
    th.testing.assert_close(steve(expansions), tensor([expected])[0], rtol=0, atol=1e-12)


def test_steve_with_equal_variances_is_the_mean() -> None:
    spread = tensor([-1.0, 0.5, 0.5])[0]
    means = tensor([3.0, -2.0, 7.0, 1.0])[0]
    expansions = (means[:, None] + spread)[:, :, None]
    th.testing.assert_close(steve(expansions), means.mean()[None], rtol=0, atol=1e-12)


def test_steve_with_one_member_is_mve() -> None:
    expansions = th.randn(4, 1, 5, dtype=th.float64)
    assert th.equal(steve(expansions), expansions[-1, 0])


@pytest.mark.parametrize("horizon", [1, 3, 10])
def test_no_horizon_swallows_the_weights(horizon: int) -> None:
    """The authors' code gave the horizon that no model touches 0.99999 of the weight: its variance was zero."""
    variance = th.full((horizon + 1, 1), 0.3, dtype=th.float64)
    variance[0] = 0
    weights = steve_weights(variance)
    th.testing.assert_close(weights[0].item(), 2 / (2 + horizon))
    th.testing.assert_close(weights.sum().item(), 1.0)


@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_steve_without_any_variance_is_the_mean(dtype: th.dtype) -> None:
    expansions = th.tensor([1.0, 2.0, 6.0], dtype=dtype)[:, None, None].expand(3, 4, 2)
    th.testing.assert_close(steve(expansions), th.full((2,), 3.0, dtype=dtype))


def test_uncertain_horizons_lose_their_weight() -> None:
    weights = steve_weights(tensor([1.0], [1.0], [1e6]))
    assert weights[2].item() < 1e-5


def test_a_policy_may_give_log_probabilities() -> None:
    class Still:
        def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, None]:
            return obs + actions, None

        def outcome(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: None) -> tuple[th.Tensor, None]:
            return obs[:, 0], None

    obs = tensor([1.0], [2.0])
    for horizon in (0, 2):
        rollout = imagine(Still(), lambda s: (0 * s + 1, -s[:, 0]), obs, horizon)
        assert rollout.log_probs is not None and rollout.log_probs.shape == (horizon + 1, 2)
        assert th.equal(rollout.log_probs, -rollout.obs[:, :, 0])
    assert imagine(Still(), lambda s: 0 * s, obs, 2).log_probs is None
