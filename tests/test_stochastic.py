"""The stochastic family: MAAC without its extras is SAC, its objective against one written out, its own state."""

from pathlib import Path
from typing import Any

import pytest
import torch as th
from small_models import draw, make, seeded, with_model
from stable_baselines3 import SAC
from tiny import PointEnv, same, snapshot, tiny
from torch import nn

from sb3_valuegrad import MAAC, MBPO
from sb3_valuegrad.gradients import frozen

SAC_SETTINGS: dict[str, Any] = {
    "horizon": 0,
    "target_estimator": "td",
    "target_horizon": 0,
    "model_fit_freq": None,
    "real_ratio": 1.0,
    "model_validation_fraction": 0.0,
    "learning_rate": 1e-3,
    "qf_learning_rate": None,
}
PLAIN = {**SAC_SETTINGS, "policy_kwargs": {"world_model_class": "mlp"}}


def pair(**changes: Any) -> tuple[Any, Any]:
    """SB3's SAC and ours with equal networks, optimizers and experience."""
    common = {"activation_fn": nn.ReLU, "optimizer_kwargs": {"foreach": False}}
    theirs = make(SAC, learning_rate=1e-3, policy_kwargs=dict(common))
    ours = make(MAAC, **{**SAC_SETTINGS, **changes}, policy_kwargs={**common, "layer_norm": False, "world_model_class": "mlp"})
    missing, unexpected = ours.policy.load_state_dict(theirs.policy.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("world_model.") for name in missing)
    return theirs, ours


def sac_losses(sac: Any, batch: Any, alpha: float) -> tuple[th.Tensor, th.Tensor]:
    """SB3's SAC.train, its losses alone; the target's action is drawn first, the policy's second."""
    with th.no_grad():
        next_actions, next_log_prob = sac.actor.action_log_prob(batch.next_observations)
        next_q = th.cat(sac.critic_target(batch.next_observations, next_actions), dim=1).min(dim=1, keepdim=True)[0]
        next_q = next_q - alpha * next_log_prob.reshape(-1, 1)
        target = batch.rewards + (1 - batch.dones) * sac.gamma * next_q
    current = sac.critic(batch.observations, batch.actions)
    first, second = (nn.functional.mse_loss(q, target) for q in current)
    critic_loss = 0.5 * (first + second)
    actions, log_prob = sac.actor.action_log_prob(batch.observations)
    q = th.cat(sac.critic(batch.observations, actions), dim=1).min(dim=1, keepdim=True)[0]
    return critic_loss, (alpha * log_prob.reshape(-1, 1) - q).mean()


@pytest.mark.parametrize("trained", [False, True])
def test_horizon_zero_is_sac_to_the_last_bit(trained: bool) -> None:
    """A trained model in the policy changes nothing: neither loss may look at it."""
    theirs, ours = pair(ent_coef=0.37)
    ours._n_model_updates = int(trained)
    batch = draw(ours)
    with seeded(3):
        expected = sac_losses(theirs, batch, ours._alpha())
    with seeded(3):
        losses = ours._critic_loss(batch)[0], ours._actor_loss(batch)[0]
    assert th.equal(losses[0], expected[0]) and th.equal(losses[1], expected[1])
    for loss, networks in ((losses[0], "critic"), (losses[1], "actor")):
        index = int(networks == "actor")
        loss.backward()
        expected[index].backward()
        for mine, other in zip(getattr(ours, networks).parameters(), getattr(theirs, networks).parameters(), strict=True):
            assert mine.grad is not None and other.grad is not None and th.equal(mine.grad, other.grad)
        for agent in (ours, theirs):
            agent.policy.zero_grad()


def test_the_temperature_learns_as_in_sac() -> None:
    """SB3's loss and optimizer on the same samples of the policy."""
    _, ours = pair(ent_coef="auto_0.5", target_entropy=-0.3)
    assert ours.target_entropy == -0.3 and ours._alpha().item() == pytest.approx(0.5)
    batch, log_alpha = draw(ours), th.tensor([0.5]).log().requires_grad_()
    with seeded(3):
        _, log_prob = ours.actor.action_log_prob(batch.observations)
    loss = -(log_alpha * (log_prob.detach() - 0.3)).mean()
    loss.backward()
    th.optim.Adam([log_alpha], lr=1e-3).step()
    with seeded(3):
        logged = ours._update_actor(lambda: ours._actor_loss(batch))
    th.testing.assert_close(logged["ent_coef_loss"], loss)
    th.testing.assert_close(ours.log_ent_coef, log_alpha)
    assert ours.log_ent_coef.item() != pytest.approx(th.tensor(0.5).log().item())


def test_objective_is_the_soft_value_expansion_written_out() -> None:
    agent = with_model(MAAC, **{**PLAIN, "horizon": 2, "ent_coef": 0.2, "n_samples": 3})
    obs = draw(agent).observations[:5]
    gamma, alpha = agent.gamma, 0.2
    with seeded(9):
        objective, log_prob = agent._objective(obs, 2)
    with seeded(9), frozen(agent._other_parameters):
        state, alive, total = obs.repeat(3, 1), th.ones(15), th.zeros(15)
        log_probs = []
        for t in range(2):
            action, logp = agent.actor.action_log_prob(state)
            log_probs.append(logp)
            step = agent.world_model.step(state, action)
            total = total + gamma**t * alive * (step.reward - alpha * logp)
            state, alive = step.next_obs, alive * (1 - step.done)
        action, logp = agent.actor.action_log_prob(state)
        q = th.minimum(*(values[:, 0] for values in agent.critic(state, action)))
        expected = (total + gamma**2 * alive * (q - alpha * logp)).mean()
    th.testing.assert_close(objective, expected, rtol=1e-5, atol=1e-5)
    th.testing.assert_close(log_prob, log_probs[0].mean())
    # All-action path: the later actions' gradient is there, too.
    ours = th.autograd.grad(objective, list(agent.actor.parameters()))
    theirs = th.autograd.grad(expected, list(agent.actor.parameters()))
    th.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world_model", ["mlp", "ensemble"])
def test_only_the_actor_receives_gradient(world_model: str) -> None:
    agent = with_model(MAAC, **{**PLAIN, "horizon": 2, "policy_kwargs": {"world_model_class": world_model}})
    batch = draw(agent)
    with frozen(agent._other_parameters):
        agent._actor_loss(batch)[0].backward()
    assert all(parameter.grad is not None for parameter in agent.actor.parameters())
    assert all(parameter.grad is None for parameter in agent._other_parameters)


def maac(**kwargs: Any) -> Any:
    given = {"model_fit_freq": 20, "rollouts_per_step": 4, "imagined_buffer_size": 500, **kwargs}
    policy_kwargs = {"world_model_kwargs": {"net_arch": [16], "n_members": 3, "n_elites": 2}}
    algorithm = given.pop("algorithm", MAAC)
    settings = {"model_fit_kwargs": {"max_epochs": 2}, "model_validation_fraction": 0.5, "horizon": 2, **given}
    return tiny(PointEnv(length=25), algorithm, policy_kwargs=policy_kwargs, **settings)


def test_save_load_and_resume_carry_everything(tmp_path: Path) -> None:
    """Ensemble, normalisers, imagined data and temperature by value; then both go on alike."""
    model = maac().learn(70)
    assert len(model.imagined) > 0 and model.log_ent_coef.item() != 0
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded: Any = MAAC.load(tmp_path / "model", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert same(snapshot(loaded), snapshot(model))
    assert th.equal(loaded.log_ent_coef, model.log_ent_coef) and loaded.log_ent_coef.requires_grad
    assert len(loaded.imagined) == len(model.imagined) > 0
    assert th.equal(loaded.imagined.rows, model.imagined.rows) and loaded.imagined.total == model.imagined.total
    loaded.set_logger(model.logger)
    for agent in (model, loaded):
        with seeded(4):
            agent.train(3, 16)
    assert same(snapshot(loaded), snapshot(model))


def test_seeded_runs_repeat() -> None:
    assert same(snapshot(maac().learn(60)), snapshot(maac().learn(60)))


@pytest.mark.parametrize("algorithm", [MAAC, MBPO])
@pytest.mark.parametrize("estimator", ["td", "mve", "td-k", "steve"])
def test_every_critic_target_trains(algorithm: Any, estimator: str) -> None:
    horizon = 0 if estimator == "td" else 2
    model = maac(algorithm=algorithm, target_estimator=estimator, target_horizon=horizon)
    before = snapshot(model)
    model.learn(50)
    after = snapshot(model)
    for network in ("actor", "critic", "world_model"):
        assert any(not th.equal(before[name], after[name]) for name in before if f"/policy/{network}." in name), network


def test_mbpo_is_a_setting_of_maac() -> None:
    mbpo = snapshot(maac(algorithm=MBPO, horizon=0).learn(50))
    setting = maac(horizon=0, target_estimator="td", target_horizon=0)
    assert same(mbpo, snapshot(setting.learn(50)))


def test_the_policy_alone_needs_the_model() -> None:
    """Real data and one-step targets only, but three steps of the policy's objective."""
    model = maac(horizon=3, target_estimator="td", target_horizon=0, real_ratio=1.0).learn(45)
    assert model._n_model_updates > 0


def test_a_fresh_learn_fits_anew() -> None:
    model = maac(model_fit_freq=30).learn(41)
    updates = model._n_model_updates
    model.learn(25)  # counts from 0: the fit at step 20 of before says nothing
    assert model._n_model_updates > updates


def test_only_what_was_imagined_is_saved() -> None:
    model = maac(imagined_buffer_size=10_000).learn(30)
    rows = model.imagined.state_dict()["rows"]
    assert 0 < len(rows) == len(model.imagined) < 10_000
    with pytest.raises(ValueError, match="imagined_buffer_size"):
        maac(imagined_buffer_size=len(rows) - 1).imagined.load_state_dict(model.imagined.state_dict())


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"ent_coef": "automatic"}, "ent_coef='automatic'"),
        ({"ent_coef": "auto_0"}, "ent_coef='auto_0'"),
        ({"ent_coef": "auto_x"}, "ent_coef='x' must be a number; given was 'auto_x'"),
        ({"target_entropy": "high"}, "target_entropy='high'"),
        ({"n_samples": 0}, "n_samples=0"),
        ({"target_update_interval": 0}, "target_update_interval=0"),
        ({"real_ratio": 1.5}, "real_ratio=1.5"),
        ({"rollout_length": 0}, "rollout_length=0"),
        ({"rollout_length": [1, 5, 100, 100]}, "t0 < t1"),
        ({"rollout_length": [1, 5]}, "rollout_length"),
        ({"rollouts_per_step": 0}, "rollouts_per_step=0"),
        ({"imagined_buffer_size": 0}, "imagined_buffer_size=0"),
        ({"target_estimator": "lambda"}, "target_estimator='lambda'"),
        ({"target_estimator": "td", "target_horizon": 2}, "target_horizon=2"),
        ({"target_horizon": -1}, "target_horizon=-1"),
        ({"model_fit_freq": 0}, "model_fit_freq=0"),
        ({"model_validation_fraction": 0.0}, "model_validation_fraction=0.0"),
        ({"on_fit_error": "ignore"}, "on_fit_error='ignore'"),
    ],
)
def test_bad_arguments(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", "\\[")):
        maac(**argument)


@pytest.mark.parametrize("rows", [3, 64])
def test_samples_are_sb3s_to_the_last_bit(rows: int) -> None:
    """Actions, log-probabilities and the gradients of both, without SB3's distribution objects."""
    theirs, ours = pair()
    obs, results = th.randn(rows, *theirs.observation_space.shape), []
    for agent in (theirs, ours):
        with seeded(5):
            actions, log_probs = agent.actor.action_log_prob(obs)
        (actions.square().sum() + log_probs.sum()).backward()
        results.append([actions, log_probs, *(parameter.grad for parameter in agent.actor.parameters())])
    for expected, actual in zip(*results, strict=True):
        assert th.equal(actual, expected)
