"""The Gaussian ensemble: against separate networks, against the normal distribution, and who predicts which row."""

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch as th
from small_models import seeded
from test_world_models import A, S, data, known_end, known_reward
from tiny import PointEnv, same, snapshot, tiny
from torch import nn

from sb3_valuegrad import DVG, DVPG
from sb3_valuegrad.gradients import frozen
from sb3_valuegrad.rollouts import imagine
from sb3_valuegrad.world_models import GaussianEnsemble, MlpWorldModel, Transitions, get_world_model_class
from sb3_valuegrad.world_models.gaussian import MAX_LOG_VAR, MIN_LOG_VAR, bounded, negative_log_likelihood
from sb3_valuegrad.world_models.networks import ParallelMlp


def ending(rows: int, seed: int = 0) -> Transitions:
    return data(rows, seed, lambda obs: (obs[:, 0] > 0.5).float())


def built(seed: int = 0, observed: bool = True, **kwargs: Any) -> GaussianEnsemble:
    """Four small networks, three elites, in float64, whose scales have seen data with terminations."""
    with seeded(seed):
        model = GaussianEnsemble(S, A, **{"net_arch": [16, 16], "n_members": 4, "n_elites": 3, **kwargs})
    if observed:
        model.observe_all(ending(500))
    return model.double()


def only(model: GaussianEnsemble, member: int, **kwargs: Any) -> GaussianEnsemble:
    """One member as an ensemble of its own."""
    single = built(n_members=1, n_elites=1, **kwargs)
    state = {name: value[member : member + 1] if "network" in name else value for name, value in model.state_dict().items()}
    single.load_state_dict(state)
    return single


def inputs(rows: int, seed: int = 3) -> tuple[th.Tensor, th.Tensor]:
    of = data(rows, seed)
    return of.obs.double(), of.actions.double()


def doubles(of: Transitions) -> Transitions:
    return Transitions(*(part.double() for part in of[:5]))


# ---------------------------------------------------------------- against separate networks


def alone(network: ParallelMlp, member: int) -> nn.Sequential:
    """One member of a batch of networks as an ordinary network."""
    layers: list[nn.Module] = []
    for weight, bias in zip(network.weights, network.biases, strict=True):
        linear = nn.Linear(*weight.shape[1:])
        linear.weight.data, linear.bias.data = weight[member].t(), bias[member, 0]
        layers += [linear, network.activation]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(("normalize", "predict_change"), list(itertools.product([True, False], repeat=2)))
def test_the_ensemble_equals_separate_networks(normalize: bool, predict_change: bool) -> None:
    """Every member built as its own network, its outputs taken apart by hand."""
    model = built(normalize=normalize, predict_change=predict_change, deterministic=True)
    obs, actions = inputs(5)
    predicted = model.member_predictions(obs, actions)
    for member in range(4):
        raw = th.cat([obs, actions], dim=1)
        raw = (raw - model.input_scaler.mean) / model.input_scaler.std if normalize else raw
        mean, _, reward, _ = alone(model.network, member)(raw).split([S, S, 1, 1], dim=1)
        logit = alone(model.done_network, member)(raw)
        if normalize:
            mean = model.state_scaler.mean + mean * model.state_scaler.std
            reward = model.reward_scaler.mean + reward * model.reward_scaler.std
        th.testing.assert_close(predicted.next_obs[member], obs + mean if predict_change else mean)
        th.testing.assert_close(predicted.reward[member], reward[:, 0])
        th.testing.assert_close(predicted.done[member], model._termination(logit[:, 0]))


def test_each_network_learns_as_it_would_alone() -> None:
    model = built()
    singles = [only(model, member) for member in range(4)]
    optimizers = [th.optim.Adam(each.parameter_groups(), 1e-2) for each in (model, *singles)]
    for seed in range(5):
        batch = doubles(ending(32, seed))
        for each, optimizer in zip((model, *singles), optimizers, strict=True):
            optimizer.zero_grad()
            th.stack(list(each.losses(batch).values())).sum().backward()
            optimizer.step()
    for member, single in enumerate(singles):
        for parameter, own in zip(model.parameters(), single.parameters(), strict=True):
            th.testing.assert_close(parameter[member], own[0], rtol=1e-9, atol=1e-12)


OPTIONS = list(itertools.product([True, False], [None, known_reward], ["learned", "none", known_end], ["step", "rollout"]))


@pytest.mark.parametrize(("deterministic", "reward_fn", "termination", "member_draw"), OPTIONS)
def test_options(deterministic: bool, reward_fn: Any, termination: Any, member_draw: str) -> None:
    model = built(deterministic=deterministic, reward_fn=reward_fn, termination=termination, member_draw=member_draw)
    batch = doubles(ending(7))
    losses = model.losses(batch)
    learned = {"model_reward_loss": reward_fn is None, "model_done_loss": termination == "learned"}
    assert list(losses) == ["model_state_loss", *(name for name, is_learned in learned.items() if is_learned)]
    assert all(loss.shape == () and th.isfinite(loss) for loss in losses.values())
    th.stack(list(losses.values())).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and (parameter.grad.flatten(1).abs().sum(1) > 0).all()

    obs, actions = (part.requires_grad_() for part in inputs(7))
    next_obs, reward, done = model.step(obs, actions)
    assert next_obs.shape == (7, S) and reward.shape == done.shape == (7,)
    for result in (next_obs, reward, *([done] if termination != "none" else [])):
        for gradient in th.autograd.grad(result.sum(), (obs, actions), retain_graph=True):
            assert (gradient.abs().sum(1) > 0).all()
    if reward_fn is not None:
        assert th.equal(reward, known_reward(obs, actions, next_obs))
    if callable(termination):
        assert th.equal(done, known_end(obs, actions, next_obs))
    assert model.member_predictions(obs, actions).done.shape == (4, 7)


# ---------------------------------------------------------------- against the normal distribution


def test_likelihood_is_the_normal_distributions() -> None:
    mean, log_var, target = (th.randn(5, 3, dtype=th.float64, generator=th.Generator().manual_seed(i)) for i in range(3))
    truth = -th.distributions.Normal(mean, log_var.exp().sqrt()).log_prob(target)
    th.testing.assert_close(negative_log_likelihood(mean, log_var, target), truth)


def test_losses_are_the_likelihood_of_the_samples() -> None:
    """The density that is fitted is the one that is sampled: scales, bounds and all."""
    model, of = built(), doubles(ending(20))
    total = th.zeros((), dtype=th.float64)
    for member in range(4):
        obs, single = of.obs, only(model, member, deterministic=True)
        mean = single.transition(obs, of.actions)[0]
        normal = th.distributions.Normal(mean, deviation(single, obs, of.actions))
        # In scaled units densities are larger by the scale.
        total += -(normal.log_prob(of.next_obs) + model.state_scaler.std.log()).mean()
    th.testing.assert_close(model.losses(of)["model_state_loss"], total)


def deviation(model: GaussianEnsemble, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """The standard deviation that an ensemble of one network predicts, (N, S)."""
    _, log_var, _ = model._split(model._outputs(model._inputs(obs, actions)))
    return bounded(log_var[0]).exp().sqrt() * model.state_scaler.std


def test_spread_of_samples_is_the_predicted_deviation() -> None:
    model = only(built(), 1)
    (obs, actions), count = inputs(1), 40_000
    with seeded(0), th.no_grad():
        next_obs = model.transition(obs.expand(count, -1), actions.expand(count, -1))[0]
    wanted = deviation(model, obs, actions)[0]
    th.testing.assert_close(next_obs.std(0), wanted, rtol=0.02, atol=0)
    mean = only(model, 0, deterministic=True).transition(obs, actions)[0][0]
    assert ((next_obs.mean(0) - mean).abs() < 4 * wanted / count**0.5).all()


def test_spread_of_the_elites_together_is_the_mixtures() -> None:
    """Law of total variance: the members' own noise, and what they disagree on."""
    model = built()
    (obs, actions), count = inputs(1), 60_000
    with seeded(0), th.no_grad():
        next_obs = model.transition(obs.expand(count, -1), actions.expand(count, -1))[0]
        means = model.member_predictions(obs, actions).next_obs[:3, 0]
        own = th.stack([deviation(only(model, member), obs, actions)[0] for member in range(3)]).square().mean(0)
    th.testing.assert_close(next_obs.var(0), own + means.var(0, correction=0), rtol=0.03, atol=0)


def test_the_reward_and_the_deterministic_state_are_no_samples() -> None:
    model, (obs, actions) = built(n_elites=1), inputs(6)
    first, second = model.step(obs, actions), model.step(obs, actions)
    assert th.equal(first.reward, second.reward) and not th.equal(first.next_obs, second.next_obs)
    model.deterministic = True
    assert th.equal(model.step(obs, actions).next_obs, model.member_predictions(obs, actions).next_obs[0])


@pytest.mark.parametrize(("member_draw", "rows"), list(itertools.product(["step", "rollout"], [2, 6, 7])))
def test_gradient_of_a_sample_by_finite_differences(member_draw: str, rows: int) -> None:
    """In states and actions, with the same noise and the same members."""
    model = built(member_draw=member_draw)

    def sample(obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        with seeded(7):
            return tuple(model.step(obs, actions))

    assert th.autograd.gradcheck(sample, tuple(part.requires_grad_() for part in inputs(rows)))


def test_log_variance_is_bounded() -> None:
    raw = th.linspace(-300, 300, 6001, dtype=th.float64)
    log_var = bounded(raw)
    assert (log_var.diff() >= 0).all()
    assert MIN_LOG_VAR <= log_var.min() < MIN_LOG_VAR + 1e-6 and MAX_LOG_VAR - 1e-6 < log_var.max() < MAX_LOG_VAR + 3e-5
    inside = (raw > -7) & (raw < -3)
    th.testing.assert_close(log_var[inside], raw[inside], atol=0.1, rtol=0)
    # Beyond the bounds there is a way back.
    beyond = th.tensor([MIN_LOG_VAR - 5, MAX_LOG_VAR + 5], requires_grad=True)
    (gradient,) = th.autograd.grad(bounded(beyond).sum(), beyond)
    assert (gradient > 1e-3).all()


def test_a_constant_column_is_predicted_to_stay() -> None:
    model, of = built(observed=False), doubles(data(256))
    column = th.tensor([1])
    of = of._replace(obs=of.obs.index_fill(1, column, 0.7), next_obs=of.next_obs.index_fill(1, column, 0.7))
    model.observe_all(of)
    assert (model.step(of.obs, of.actions).next_obs[:, 1] == 0.7).all()


# ---------------------------------------------------------------- who predicts which row


def drawn(model: GaussianEnsemble, rows: int, at: tuple[th.Tensor, th.Tensor] | None = None) -> list[int]:
    """The member of each row; its next state, reward and termination must be of one and the same."""
    obs, actions = inputs(rows) if at is None else at
    with th.no_grad():
        step, predicted = model.step(obs, actions), model.member_predictions(obs, actions)
    of_state = (step.next_obs - predicted.next_obs).abs().amax(2)
    of_rest = th.maximum((step.reward - predicted.reward).abs(), (step.done - predicted.done).abs())
    found = th.maximum(of_state, of_rest) < 1e-12
    assert (found.sum(0) == 1).all()
    return found.long().argmax(0).tolist()


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 9, 100])
def test_every_row_is_one_elites(rows: int) -> None:
    """And the elites have equally many, up to one. With "rollout" in contiguous blocks, always the same ones."""
    model = built(deterministic=True, member_draw="rollout")
    members = drawn(model, rows)
    counts = [members.count(member) for member in range(3)]
    assert members == sorted(members) == drawn(model, rows) and max(counts) - min(counts) <= 1
    model.member_draw = "step"
    with seeded(0):
        members, again = drawn(model, rows), drawn(model, rows)
    assert set(members) <= {0, 1, 2} and max(members.count(member) for member in range(3)) <= -(-rows // 3)
    assert rows < 9 or (members != again and members != sorted(members))


@pytest.mark.parametrize("rows", [1, 4])
def test_every_elite_is_drawn_equally_often(rows: int) -> None:
    """For each row, also where the rows cannot be dealt evenly."""
    model = built(deterministic=True, net_arch=[4])
    at, count = inputs(rows), 1500
    with seeded(0):
        members = th.tensor([drawn(model, rows, at) for _ in range(count)])
    for row, member in itertools.product(range(rows), range(3)):
        assert ((members[:, row] == member).double().mean() - 1 / 3).abs() < 4 * (2 / 9 / count) ** 0.5


@pytest.mark.parametrize("member_draw", ["step", "rollout"])
def test_by_member_follows_each_elite_through_a_rollout(member_draw: str) -> None:
    model, rows, horizon = built(deterministic=True, member_draw=member_draw), 5, 3
    obs, policy = inputs(rows)[0], lambda states: th.tanh(states[:, :A])
    together = imagine(model.by_member(), policy, obs.repeat(model.members, 1), horizon)
    assert together.obs.shape == (horizon + 1, 3 * rows, S)
    for member in range(3):
        own = imagine(only(model, member, deterministic=True), policy, obs, horizon)
        block = slice(member * rows, (member + 1) * rows)
        for part, of_own in zip(together[:4], own[:4], strict=True):
            th.testing.assert_close(part[:, block], of_own)
    with pytest.raises(ValueError, match="multiple of 3 rows"):
        model.by_member().transition(*inputs(7))


def test_a_model_without_members_is_its_own_member() -> None:
    model = MlpWorldModel(S, A, [8]).double()
    obs, actions = inputs(5)
    next_obs, reward, _ = model.step(obs, actions)
    assert model.by_member() is model and model.members == model.n_members == 1
    assert th.equal(model.member_rewards(obs, actions, next_obs), reward[None])
    assert th.equal(model.member_predictions(obs, actions).next_obs, next_obs[None])


def test_every_elites_reward_of_all_rows() -> None:
    model, (obs, actions) = built(), inputs(5)
    predicted = model.member_predictions(obs, actions)
    rewards = model.member_rewards(obs, actions, predicted.next_obs[0])
    assert rewards.shape == (3, 5)
    th.testing.assert_close(rewards, predicted.reward[:3])
    known = built(reward_fn=known_reward)
    assert th.equal(known.member_rewards(obs, actions, obs), known_reward(obs, actions, obs)[None])


# ---------------------------------------------------------------- the rest of the contract


def test_termination_is_zero_before_any_was_seen() -> None:
    model, of = built(observed=False), doubles(data(50))
    model.observe(of)
    assert (model.step(of.obs, of.actions).done == 0).all() and model.losses(of)["model_done_loss"] == 0


def test_rows_of_no_weight_do_not_count() -> None:
    model, good, bad = built(), doubles(ending(8, 1)), doubles(ending(8, 2))
    weights = th.cat([th.full((8,), 1 / 8), th.zeros(8)]).double()
    both = Transitions(*(th.cat(parts) for parts in zip(good[:5], bad[:5], strict=True)))._replace(weights=weights)
    for name, loss in model.losses(both).items():
        th.testing.assert_close(loss, model.losses(good)[name])


def test_rows_of_their_own_for_each_network() -> None:
    model, sets = built(), [doubles(ending(8, seed)) for seed in range(4)]
    stacked = Transitions(*(th.stack(parts) for parts in zip(*(part[:5] for part in sets), strict=True)))
    singles = [only(model, member).losses(own) for member, own in enumerate(sets)]
    for name, loss in model.losses(stacked).items():
        th.testing.assert_close(loss, th.stack([each[name] for each in singles]).sum())


def test_only_inputs_receive_gradient_in_a_frozen_model() -> None:
    model = built()
    obs, actions = (part.requires_grad_() for part in inputs(6))
    with frozen(model.parameters()):
        step = model.step(obs, actions)
    (step.next_obs.sum() + step.reward.sum()).backward()
    assert obs.grad is not None and all(parameter.grad is None for parameter in model.parameters())


def test_state_is_float_and_loads_as_weights() -> None:
    model, file = built(), io.BytesIO()
    assert all(value.is_floating_point() for value in model.state_dict().values())
    th.save(model.state_dict(), file)
    file.seek(0)
    other = built(seed=1)
    other.load_state_dict(th.load(file, weights_only=True))
    assert all(th.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_members": 0}, "n_members=0 must"),
        ({"n_members": 2.5}, "n_members=2.5 must"),
        ({"n_elites": 0}, "n_elites=0 must"),
        ({"n_members": 3, "n_elites": 4}, "n_elites=4 .*n_members=3"),
        ({"member_draw": "epoch"}, "member_draw='epoch'.*step.*rollout"),
        ({"termination": "sometimes"}, "termination='sometimes'"),
        ({"reward_fn": lambda obs, actions, next_obs: obs}, "reward_fn=.*shape"),
    ],
)
def test_bad_input(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianEnsemble(S, A, **kwargs)


ENSEMBLE = {"world_model_class": "ensemble", "world_model_kwargs": {"net_arch": [16], "n_members": 3, "n_elites": 2}}


@pytest.mark.parametrize("algorithm", [DVPG, DVG])
@pytest.mark.parametrize("member_draw", ["step", "rollout"])
def test_algorithms_train_with_it(algorithm: Any, member_draw: str) -> None:
    kwargs = {**ENSEMBLE["world_model_kwargs"], "member_draw": member_draw}  # type: ignore[dict-item]
    model = tiny(PointEnv(terminates=True), algorithm, policy_kwargs={**ENSEMBLE, "world_model_kwargs": kwargs})
    before = snapshot(model)
    model.learn(60)
    after = snapshot(model)
    assert isinstance(model.world_model, get_world_model_class("ensemble"))
    weights = [name for name in before if "weight" in name or "/policy/actor." in name]
    assert weights and all(not th.equal(before[name], after[name]) for name in weights)
    assert all(th.isfinite(value).all() for value in after.values())


def test_saved_and_loaded_by_value(tmp_path: Path) -> None:
    model = tiny(policy_kwargs=ENSEMBLE)
    model.learn(40)
    model.save(tmp_path / "model")
    loaded = DVPG.load(tmp_path / "model")
    assert same(snapshot(model), snapshot(loaded))
    assert isinstance(loaded.world_model, GaussianEnsemble) and loaded.world_model.members == 2
    obs, actions = th.zeros(4, 2), th.zeros(4, 2)
    with seeded(0):
        step = model.world_model.step(obs, actions)
    with seeded(0):
        assert all(th.equal(part, again) for part, again in zip(step, loaded.world_model.step(obs, actions), strict=True))


# ---------------------------------------------------------------- while no termination was seen


def test_termination_networks_are_not_asked_before_they_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit what they would leave of a rollout, and its gradient; the loss still trains them."""
    model, (obs, actions) = built(member_draw="rollout"), inputs(6)
    assert model.may_end
    model.observe_all(doubles(data(100)))  # nothing ends in here
    assert not model.may_end
    results = []
    for may_end in (True, False):
        model.may_end = may_end
        with seeded(0):
            start = obs.clone().requires_grad_()
            rollout = imagine(model, lambda states: th.tanh(states[:, :A]), start, 3)
        assert rollout.endless is not may_end
        value = rollout.rewards.sum() + rollout.obs[-1].sum()
        results.append([*rollout[:4], *th.autograd.grad(value, start), *model.member_predictions(obs, actions)])
    for asked, not_asked in zip(*results, strict=True):
        assert th.equal(asked, not_asked)
    assert model.losses(doubles(ending(50))).keys() == built().losses(doubles(ending(50))).keys()

    def never(*_: Any) -> th.Tensor:
        raise AssertionError

    monkeypatch.setattr(model.done_network, "forward", never)
    model.step(obs, actions)
    for take_note in (lambda: model.observe(doubles(data(5))), lambda: model.observe_all(doubles(ending(100))),
                      lambda: model.load_state_dict(built().state_dict())):  # fmt: skip
        model.may_end = False
        take_note()
        assert model.may_end
    with pytest.raises(AssertionError):
        model.step(obs, actions)
    assert not built(termination="none").may_end
