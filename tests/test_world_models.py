"""The world-model room: shapes, gradients, scaling, termination, and whether a fit predicts."""

import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch as th
from torch import nn

from sb3_valuegrad.world_models import MlpWorldModel, Transitions
from sb3_valuegrad.world_models.scaling import RunningScaler

S, A, N = 3, 2, 7
PAPER: dict[str, Any] = {
    "net_arch": [64, 64], "activation_fn": nn.ReLU, "share_network": False, "normalize": False, "predict_change": False,
    "weight_decay": 1e-4, "termination": "none",
}  # fmt: skip


def known_reward(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return next_obs.sum(1) - actions.square().sum(1)


def known_end(obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
    return th.sigmoid(next_obs[:, 0])


def data(rows: int, seed: int = 0, ends: Callable[[th.Tensor], th.Tensor] | None = None) -> Transitions:
    """``s' = s + 0.3 (a_0, a_1, 0) + 0.1 sin(s) ``, ``r = s_0 - a_1^2``, states on unequal scales."""
    generator = th.Generator().manual_seed(seed)
    scale, offset = th.tensor([1.0, 10.0, 0.1]), th.tensor([0.0, 5.0, -1.0])
    obs = th.randn(rows, S, generator=generator) * scale + offset
    actions = th.rand(rows, A, generator=generator) * 2 - 1
    push = th.cat([0.3 * actions, th.zeros(rows, 1)], dim=1)
    next_obs = obs + (push + 0.1 * th.sin(obs / scale)) * scale
    dones = th.zeros(rows) if ends is None else ends(obs)
    return Transitions(obs, actions, obs[:, 0] - actions[:, 1].square(), dones, next_obs)


def batches(of: Transitions, size: int, count: int) -> list[Transitions]:
    generator = th.Generator().manual_seed(1)
    chosen = [th.randint(len(of.obs), (size,), generator=generator) for _ in range(count)]
    return [Transitions(*(part[rows] for part in of[:5])) for rows in chosen]


def fitted(model: MlpWorldModel, of: Transitions, steps: int, learning_rate: float = 3e-3, size: int = 128) -> MlpWorldModel:
    """The model after ``steps`` of Adam, the learning rate falling to zero."""
    optimizer = th.optim.Adam(model.parameter_groups(), learning_rate)
    schedule = th.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for batch in batches(of, size, steps):
        with th.no_grad():
            model.observe(batch)
        th.stack(list(model.losses(batch).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


def built(seed: int = 0, **kwargs: Any) -> MlpWorldModel:
    with th.random.fork_rng():
        th.manual_seed(seed)
        return MlpWorldModel(S, A, **{"net_arch": [32, 32], **kwargs})


# ---------------------------------------------------------------- every combination of options


OPTIONS = list(
    itertools.product([True, False], [True, False], [True, False], [None, known_reward], ["learned", "none", known_end])
)


@pytest.mark.parametrize(("share_network", "normalize", "predict_change", "reward_fn", "termination"), OPTIONS)
def test_options(share_network: bool, normalize: bool, predict_change: bool, reward_fn: Any, termination: Any) -> None:
    model = built(
        share_network=share_network,
        normalize=normalize,
        predict_change=predict_change,
        reward_fn=reward_fn,
        termination=termination,
    )
    batch = data(N, ends=lambda obs: (obs[:, 0] > 0).float())
    with th.no_grad():
        model.observe(batch)
    learned = (
        ["model_state_loss"] + ["model_reward_loss"] * (reward_fn is None) + ["model_done_loss"] * (termination == "learned")
    )
    assert len(model.head_networks) == (0 if share_network else len(learned) - 1)
    losses = model.losses(batch)
    assert list(losses) == learned
    assert all(loss.shape == () and th.isfinite(loss) for loss in losses.values())
    th.stack(list(losses.values())).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and th.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0
    # No output is without use: weight decay would shrink its weights to denormal numbers, with which products are slow.
    for network in (model.network, *model.head_networks):
        assert (network[-1].weight.grad.abs().sum(1) > 0).all()

    obs, actions = batch.obs.clone().requires_grad_(), batch.actions.clone().requires_grad_()
    next_obs, reward, done = model.step(obs, actions)
    assert next_obs.shape == (N, S) and reward.shape == done.shape == (N,)
    assert ((done >= 0) & (done <= 1)).all() and (termination != "none" or (done == 0).all())
    for result in (next_obs, reward, *([done] if termination != "none" else [])):
        for gradient in th.autograd.grad(result.sum(), (obs, actions), retain_graph=True):
            assert gradient is not None and th.isfinite(gradient).all() and gradient.abs().sum() > 0
    if reward_fn is not None:
        assert th.equal(reward, known_reward(obs, actions, next_obs))
    if callable(termination):
        assert th.equal(done, known_end(obs, actions, next_obs))


@pytest.mark.parametrize("share_network", [True, False])
def test_rows_of_no_weight_do_not_count(share_network: bool) -> None:
    model = built(share_network=share_network)
    good, bad = data(N, 0, lambda obs: (obs[:, 0] > 0).float()), data(N, 1, lambda obs: (obs[:, 0] > 0).float())
    with th.no_grad():
        model.observe(good)
    weights = th.cat([th.full((N,), 1 / N), th.zeros(N)])
    both = [th.cat(parts) for parts in zip(good[:5], bad[:5], strict=True)]
    mixed = Transitions(*both, weights)  # type: ignore[call-arg]
    for name, loss in model.losses(mixed).items():
        th.testing.assert_close(loss, model.losses(good)[name])
    nothing = model.losses(mixed._replace(weights=th.zeros(2 * N)))
    assert all(loss == 0 for loss in nothing.values())


def test_functions_may_answer_with_booleans() -> None:
    """The natural way to write a termination function; a rollout multiplies with it."""
    model = built(termination=lambda obs, actions, next_obs: next_obs[:, 0] > 0)
    done = model.step(*data(N)[:2]).done
    assert done.dtype == th.float32 and set(done.tolist()) <= {0.0, 1.0}


# ---------------------------------------------------------------- the paper's preset


def test_paper_preset() -> None:
    model = MlpWorldModel(S, A, **PAPER)
    (reward_network,) = model.head_networks
    for network, outputs in ((model.network, S), (cast(nn.Sequential, reward_network), 1)):
        kinds = [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
        assert [type(layer) for layer in network] == kinds
        sizes = [(64, S + A), (64, 64), (outputs, 64)]
        assert [tuple(layer.weight.shape) for layer in network if isinstance(layer, nn.Linear)] == sizes
    group: Any = model.parameter_groups()[0]
    assert group["weight_decay"] == 1e-4 and len(group["params"]) == len(list(model.parameters()))
    batch = data(N)
    next_obs, rewards, done = model.step(batch.obs, batch.actions)
    losses = model.losses(batch)
    # App. C: sum_j ||T(s_j, a_j) - s_{j+1}||^2 / n and sum_j (r(s_j, a_j) - r_j)^2 / n, on raw numbers.
    th.testing.assert_close(losses["model_state_loss"], (next_obs - batch.next_obs).square().sum() / N)
    th.testing.assert_close(losses["model_reward_loss"], (rewards - batch.rewards).square().sum() / N)
    assert (done == 0).all()
    inputs = th.cat([batch.obs, batch.actions], dim=1)
    th.testing.assert_close(next_obs, model.network(inputs))
    th.testing.assert_close(rewards, reward_network(inputs)[:, 0])


def test_separate_networks_do_not_share_gradient() -> None:
    """The reward's loss leaves the transition's network alone, and the other way round."""
    model = MlpWorldModel(S, A, **PAPER)
    losses = model.losses(data(N))
    networks = {"model_state_loss": model.network, "model_reward_loss": model.head_networks}
    for name, loss in losses.items():
        gradients = th.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        reached = {id(p) for p, gradient in zip(model.parameters(), gradients, strict=True) if gradient is not None}
        assert reached == {id(parameter) for parameter in networks[name].parameters()}


# ---------------------------------------------------------------- scaling


def test_scaler_equals_the_datas_statistics() -> None:
    rows = data(4096).obs
    scaler = RunningScaler(S)
    for part in rows.split(256):
        scaler.update(part)
    th.testing.assert_close(scaler.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    th.testing.assert_close(scaler.std, rows.std(0, correction=0), rtol=1e-4, atol=1e-5)
    scaled = scaler.scale(rows)
    th.testing.assert_close(scaled.mean(0), th.zeros(S), atol=1e-4, rtol=0)
    th.testing.assert_close(scaled.std(0, correction=0), th.ones(S), atol=1e-4, rtol=0)
    th.testing.assert_close(scaler.unscale(scaled), rows, rtol=1e-4, atol=1e-4)


def test_scaler_forgets_slowly() -> None:
    """After ``memory`` batches the average is exponential: it follows data that moved."""
    scaler, generator = RunningScaler(1, memory=20), th.Generator().manual_seed(0)
    for centre in [0.0] * 50 + [10.0] * 200:
        scaler.update(th.randn(256, 1, generator=generator) * 2 + centre)
    assert scaler.mean.item() == pytest.approx(10, abs=0.2) and scaler.std.item() == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scaler_passes_over_what_is_not_finite(value: float) -> None:
    scaler = RunningScaler(2)
    scaler.update(th.tensor([[1.0, 2.0], [3.0, 6.0]]))
    before = {name: part.clone() for name, part in scaler.state_dict().items()}
    scaler.update(th.tensor([[1.0, 2.0], [value, 6.0]]))
    assert all(th.equal(part, before[name]) for name, part in scaler.state_dict().items())


def test_scaler_leaves_a_constant_column_alone() -> None:
    """Dividing by the noise of its rounding would blow it up, and with it whatever a model imagines there."""
    scaler, generator = RunningScaler(4, memory=20), th.Generator().manual_seed(0)
    for _ in range(300):
        moves = 3 * th.randn(256, 1, generator=generator)
        scaler.update(th.cat([th.full((256, 1), 5.0), th.full((256, 1), 1234.567), th.zeros(256, 1), moves], dim=1))
        assert scaler.std[:3].tolist() == [1.0, 1.0, 1.0]
    assert scaler.std[3].item() == pytest.approx(3, rel=0.1)
    assert scaler.scale(th.tensor([[5.0, 1234.567, 0.0, 0.0]])).abs().max() < 0.1


def test_scaler_takes_up_a_column_that_begins_to_move() -> None:
    scaler, generator = RunningScaler(1), th.Generator().manual_seed(0)
    rows = th.cat([th.zeros(10 * 64, 1), 1e-2 * th.randn(10 * 64, 1, generator=generator)])
    for part in rows.split(64):
        scaler.update(part)
    assert scaler.std.item() == pytest.approx(rows.std(correction=0).item(), rel=1e-3)


@pytest.mark.parametrize("predict_change", [True, False])
def test_models_scales_are_the_datas(predict_change: bool) -> None:
    model, of = built(predict_change=predict_change), data(2048)
    with th.no_grad():
        for rows in th.arange(2048).split(128):
            model.observe(Transitions(*(part[rows] for part in of[:5])))
    scaled = {
        model.input_scaler: th.cat([of.obs, of.actions], dim=1),
        model.state_scaler: of.next_obs - of.obs if predict_change else of.next_obs,
        model.reward_scaler: of.rewards[:, None],
    }
    for scaler, columns in scaled.items():
        th.testing.assert_close(scaler.mean, columns.mean(0), rtol=1e-3, atol=1e-4)
        th.testing.assert_close(scaler.std, columns.std(0, correction=0), rtol=1e-3, atol=1e-4)


def test_a_constant_column_is_predicted_to_stay() -> None:
    """A goal, say. The network's output for it is noise, whatever its weights."""
    model, of = built(), data(256)
    of = of._replace(obs=of.obs.index_fill(1, th.tensor([1]), 0.7), next_obs=of.next_obs.index_fill(1, th.tensor([1]), 0.7))
    with th.no_grad():
        model.observe(of)
    assert (model.step(of.obs, of.actions).next_obs[:, 1] == 0.7).all()


def test_all_state_is_float() -> None:
    for name, value in built().state_dict().items():
        assert value.is_floating_point(), name


# ---------------------------------------------------------------- termination


def test_termination_is_exactly_zero_before_any_was_seen() -> None:
    model = built()
    of = data(512)
    assert (model.step(of.obs, of.actions).done == 0).all()
    fitted(model, of, 20)
    assert (model.step(of.obs, of.actions).done == 0).all() and model.losses(of)["model_done_loss"] == 0
    # And so is its gradient: nothing of it reaches a rollout.
    obs = of.obs.clone().requires_grad_()
    (gradient,) = th.autograd.grad(model.step(obs, of.actions).done.sum(), obs)
    assert (gradient == 0).all()


@pytest.mark.parametrize("share_network", [True, False])
@pytest.mark.parametrize("rate", [0.5, 0.1, 0.02])
def test_termination_is_calibrated(share_network: bool, rate: float) -> None:
    """Ends are a coin that depends on s_0; the mean prediction is the mean rate although classes are balanced."""
    generator = th.Generator().manual_seed(3)

    def ends(obs: th.Tensor) -> th.Tensor:
        chance = rate * 2 * th.sigmoid(3 * obs[:, 0])
        return (th.rand(len(obs), generator=generator) < chance).float()

    of = data(20_000, ends=ends)
    model = fitted(built(share_network=share_network, net_arch=[32]), of, 600, size=256)
    chance = model.step(of.obs, of.actions).done.detach()
    assert chance.mean().item() == pytest.approx(of.dones.mean().item(), rel=0.25)
    low, high = of.obs[:, 0] < -1, of.obs[:, 0] > 1
    assert chance[high].mean().item() == pytest.approx(of.dones[high].mean().item(), rel=0.5)
    assert chance[low].mean() < 0.3 * chance[high].mean()


def test_termination_loss_balances_the_classes() -> None:
    """One end among a hundred steps weighs as much as the other 99 together."""
    model, of = built(), data(100, ends=lambda obs: (th.arange(100) == 7).float())
    model.observe(of)
    of_done, of_alive = model._class_weights()
    assert float(of_done * 1) == pytest.approx(float(of_alive * 99))
    losses = th.nn.functional.binary_cross_entropy_with_logits(logits := th.randn(100), of.dones, reduction="none")
    weights = th.where(of.dones > 0, of_done, of_alive)
    th.testing.assert_close(model._termination_loss(logits, of), (losses * weights).mean())


# ---------------------------------------------------------------- does it predict?


@pytest.mark.parametrize(
    ("kwargs", "most"),
    [({}, 0.2), ({"share_network": False}, 0.2), ({"predict_change": False}, 0.6)],
    ids=["default", "separate", "next state"],
)
def test_a_fitted_model_predicts(kwargs: dict[str, Any], most: float) -> None:
    """Errors on fresh data, in standard deviations of the change and of the reward."""
    model = fitted(built(termination="none", **kwargs), data(4000), 500)
    fresh = data(500, seed=9)
    with th.no_grad():
        next_obs, reward, _ = model.step(fresh.obs, fresh.actions)
    change = fresh.next_obs - fresh.obs
    assert (((next_obs - fresh.next_obs) / change.std(0)).square().mean().sqrt()) < most
    assert (reward - fresh.rewards).square().mean().sqrt() / fresh.rewards.std() < most


def test_the_papers_model_learns() -> None:
    of, fresh = data(4000), data(500, seed=9)
    model = MlpWorldModel(S, A, **PAPER)
    with th.no_grad():
        before = model.losses(fresh)
    fitted(model, of, 300)
    with th.no_grad():
        after = model.losses(fresh)
    assert after["model_state_loss"] < 0.05 * before["model_state_loss"]
    assert after["model_reward_loss"] < 0.3 * before["model_reward_loss"]


def test_gradients_of_a_fitted_model_are_the_dynamics() -> None:
    """What the package lives on: ds'/da and dr/da of the fit against the truth."""
    model = fitted(built(termination="none"), data(4000), 800)
    fresh = data(200, seed=9)
    actions = fresh.actions.clone().requires_grad_()
    next_obs, reward, _ = model.step(fresh.obs, actions)
    (by_action,) = th.autograd.grad(next_obs[:, 0].sum(), actions, retain_graph=True)
    assert by_action[:, 0].mean().item() == pytest.approx(0.3, rel=0.1) and by_action[:, 1].abs().mean() < 0.05
    (of_reward,) = th.autograd.grad(reward.sum(), actions)
    truth = -2 * fresh.actions[:, 1]
    assert th.corrcoef(th.stack([of_reward[:, 1], truth]))[0, 1] > 0.95
