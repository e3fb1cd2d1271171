"""The Gaussian world model with a network for each dimension of the state."""

import math
from typing import Any

import pytest
import torch as th
from tiny import same, snapshot, tiny
from torch import nn
from torch.distributions import Normal

from sb3_valuegrad import DVG, MAAC, SVG
from sb3_valuegrad.world_models import PerDimensionGaussian, Transitions, WorldModel
from sb3_valuegrad.world_models.fitting import fit
from sb3_valuegrad.world_models.gaussian import bounded

OBS, ACTIONS = 3, 2
NOISES = ["constant", "learned"]


def make(**kwargs: Any) -> PerDimensionGaussian:
    with th.random.fork_rng():
        th.manual_seed(0)
        return PerDimensionGaussian(OBS, ACTIONS, **{"net_arch": [8, 8], **kwargs})


def data(rows: int = 2000, std: tuple[float, ...] = (0.5, 0.1, 0.02)) -> Transitions:
    """A noisy linear system; the first dimension's noise grows with the state."""
    generator = th.Generator().manual_seed(1)
    obs, actions = (th.randn(rows, dim, generator=generator) for dim in (OBS, ACTIONS))
    noise = th.randn(rows, OBS, generator=generator) * th.tensor(std)
    noise[:, 0] *= obs[:, 1].abs() + 0.1
    next_obs = 0.9 * obs + 0.3 * actions.sum(1, keepdim=True) + noise
    return Transitions(obs, actions, obs[:, 0] - actions[:, 1], (obs[:, 2] > 1.5).float(), next_obs)


@pytest.mark.parametrize("noise", NOISES)
def test_each_dimension_has_a_network_of_its_own(noise: str) -> None:
    """The batched products are those of separate networks, and a dimension's output hangs on its own parameters alone."""
    model = make(noise=noise)
    rows = data(5)
    expected, log_var, _ = model._heads(rows.obs, rows.actions)
    for index in range(OBS):
        hidden = th.cat([rows.obs, rows.actions], dim=1)
        for layer, (weight, bias) in enumerate(zip(model.network.weights, model.network.biases, strict=True)):
            hidden = hidden @ weight[index] + bias[index]
            hidden = th.tanh(hidden) if layer < 2 else hidden
        th.testing.assert_close(hidden[:, 0], expected[:, index])
        if noise == "learned":
            th.testing.assert_close(hidden[:, 1], log_var[:, index])
        gradients = th.autograd.grad(expected[:, index].sum(), list(model.network.weights), retain_graph=True)
        for gradient in gradients:
            touched = [other for other in range(len(gradient)) if gradient[other].abs().sum() > 0]
            assert touched == [index]
    assert len(model.network.weights[0]) == OBS + 2  # and the reward, and the termination


@pytest.mark.parametrize("noise", NOISES)
def test_losses_are_the_likelihood(noise: str) -> None:
    model, rows = make(noise=noise, normalize=False), data(50)
    mean, log_var, others = model._heads(rows.obs, rows.actions)
    std = (0.5 * bounded(log_var)).exp().expand_as(mean)
    losses = model.losses(rows)
    expected = -Normal(mean, std).log_prob(rows.next_obs - rows.obs).mean()
    th.testing.assert_close(losses["model_state_loss"], expected)
    th.testing.assert_close(losses["model_reward_loss"], (others[:, 0] - rows.rewards).square().mean())
    half = th.zeros(50)
    half[:25] = 1 / 25
    first = Transitions(*(part[:25] for part in rows[:5]))
    th.testing.assert_close(model.losses(rows._replace(weights=half)), model.losses(first))


@pytest.mark.parametrize("noise", NOISES)
def test_a_fit_finds_mean_and_noise(noise: str) -> None:
    model = make(noise=noise, net_arch=[20, 20])
    model.optimizer = th.optim.Adam(model.parameters(), lr=3e-3)
    rows = data()
    with th.random.fork_rng():
        th.manual_seed(0)
        fit(model, Transitions(*(part[:1800] for part in rows[:5])), Transitions(*(part[1800:] for part in rows[:5])))
        many = Transitions(*(part[:1].expand(20_000, *part.shape[1:]) for part in rows[:5]))
        sampled = model.transition(many.obs, many.actions)[0]
    prediction = model.member_predictions(rows.obs, rows.actions)
    noiseless = 0.9 * rows.obs + 0.3 * rows.actions.sum(1, keepdim=True)
    assert ((prediction.next_obs[0] - noiseless).square().mean(0).sqrt() < th.tensor([0.15, 0.05, 0.05])).all()
    std = model._state_std(model._heads(rows.obs, rows.actions)[1]).expand(len(rows.obs), -1)
    assert std.mean(0)[1:].tolist() == pytest.approx([0.1, 0.02], rel=0.5)
    # The size of the first dimension's noise follows the state where it may.
    large = rows.obs[:, 1].abs() > 1
    assert (std[large, 0].mean() > 1.5 * std[~large, 0].mean()) == (noise == "learned")
    # The spread of samples is the standard deviation.
    th.testing.assert_close(sampled.std(0), std[0], rtol=0.03, atol=0)
    th.testing.assert_close(sampled.mean(0), prediction.next_obs[0, 0], rtol=0.05, atol=0.02)
    assert th.equal(make(deterministic=True).transition(rows.obs, rows.actions)[0],
                    make().member_predictions(rows.obs, rows.actions).next_obs[0])  # fmt: skip


def test_known_functions_and_a_column_that_never_moves() -> None:
    model = make(reward_fn=lambda obs, actions, next_obs: next_obs[:, 0], termination="none")
    assert len(model.network.weights[0]) == OBS
    rows = data(20)
    rows = rows._replace(next_obs=th.cat([rows.next_obs[:, :2], rows.obs[:, 2:]], dim=1))
    model.observe(rows)
    next_obs, reward, done = model.step(rows.obs, rows.actions)
    assert th.equal(reward, next_obs[:, 0]) and not done.any() and th.equal(next_obs[:, 2], rows.obs[:, 2])
    renoised, _ = model.renoised(rows.obs, rows.actions, rows.next_obs)
    th.testing.assert_close(renoised, rows.next_obs)


@pytest.mark.parametrize("algorithm", [SVG, DVG, MAAC])
@pytest.mark.parametrize("noise", NOISES)
def test_under_every_algorithm(algorithm: Any, noise: str, tmp_path: Any) -> None:
    kwargs = {"world_model_class": "per-dimension", "world_model_kwargs": {"net_arch": [8], "noise": noise}}
    more = {"target_estimator": "td", "target_horizon": 0, "model_fit_freq": 20} if algorithm is MAAC else {}
    model = tiny(algorithm=algorithm, policy_kwargs=kwargs, **more).learn(50)
    assert isinstance(model.world_model, PerDimensionGaussian) and model._n_model_updates > 0
    model.save(tmp_path / "model")
    assert same(snapshot(algorithm.load(tmp_path / "model")), snapshot(model))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r'noise=\'none\': use "constant" or "learned"'):
        make(noise="none")


def test_the_papers_size() -> None:
    """The paper's size: 20 units a layer and dimension."""
    model: WorldModel = PerDimensionGaussian(10, 2, termination="none", reward_fn=lambda obs, actions, next_obs: obs[:, 0])
    assert sum(math.prod(p.shape) for p in model.parameters()) == 10 * (12 * 20 + 20 + 20 * 20 + 20 + 20 + 1) + 10
    assert isinstance(model.network.activation, nn.Tanh)  # type: ignore[union-attr]
