"""Fitting a world model to a data set: what it reaches, what it keeps, and what it leaves behind when it fails."""

import copy
from typing import Any

import pytest
import torch as th
from lqr import make_system
from small_models import seeded
from torch import nn

from sb3_valuegrad.errors import FitError
from sb3_valuegrad.world_models import GaussianEnsemble, MlpWorldModel, Transitions, WorldModel
from sb3_valuegrad.world_models.fitting import FitReport, fit
from sb3_valuegrad.world_models.validation import FLOOR, HeldOutError

S, A = 3, 2
NOISE = th.tensor([0.02, 0.1, 0.3])


def experience(rows: int, seed: int = 0, noise: th.Tensor = NOISE, ends: bool = False) -> Transitions:
    """The linear-quadratic system with Gaussian noise; with ``ends``, a step ends where ``s_0 > 1``."""
    generator, system = th.Generator().manual_seed(seed), make_system()
    obs = th.randn(rows, S, generator=generator)
    actions = th.rand(rows, A, generator=generator) * 2 - 1
    clean = obs @ system.A.float().T + actions @ system.B.float().T
    next_obs = clean + noise * th.randn(rows, S, generator=generator)
    rewards = system.reward(obs.double(), actions.double()).float()
    return Transitions(obs, actions, rewards, (obs[:, 0] > 1).float() * ends, next_obs)


def prepared(model: WorldModel, learning_rate: float = 3e-3) -> Any:
    model.optimizer = th.optim.Adam(model.parameter_groups(), learning_rate, fused=True)
    return model


def ensemble(learning_rate: float = 3e-3, seed: int = 0, **kwargs: Any) -> GaussianEnsemble:
    with seeded(seed):
        model = GaussianEnsemble(S, A, **{"net_arch": [32, 32], "n_members": 4, "n_elites": 2, **kwargs})
    return prepared(model, learning_rate)


def mlp(learning_rate: float = 3e-3, **kwargs: Any) -> MlpWorldModel:
    with seeded(0):
        return prepared(MlpWorldModel(S, A, [32, 32], **kwargs), learning_rate)


def fitted(model: WorldModel, rows: int = 400, seed: int = 0, **kwargs: Any) -> FitReport:
    kwargs = {"batch_size": 64, "max_epochs": 5, "generator": th.Generator().manual_seed(seed), **kwargs}
    return fit(model, experience(rows), experience(200, 1), **kwargs)


def state(model: WorldModel) -> list[th.Tensor]:
    """Everything that a fit may touch, by value."""
    moments = [value for moment in model.optimizer.state_dict()["state"].values() for value in moment.values()]
    return [value.clone() for value in (*model.state_dict().values(), *moments)]


def same(left: list[th.Tensor], right: list[th.Tensor]) -> bool:
    return len(left) == len(right) and all(map(th.equal, left, right))


# ---------------------------------------------------------------- what it reaches


def test_a_fitted_ensemble_predicts_and_knows_its_errors() -> None:
    """Means near the truth, deviations near the noise's, on fresh data."""
    model = ensemble(5e-3, n_members=3, n_elites=2)
    with seeded(0):
        report = fit(model, experience(3000), experience(1000, 1))
    assert 5 < report.epochs < 200 and (report.errors < 0.2 * report.history[0]).all()
    fresh = experience(4000, 2)
    clean = experience(4000, 2, noise=th.zeros(S))
    with th.no_grad():
        predicted = model.member_predictions(fresh.obs, fresh.actions)
        sampled = model.transition(fresh.obs, fresh.actions)[0]
    for member in range(2):
        assert ((predicted.next_obs[member] - clean.next_obs).square().mean(0).sqrt() < 0.5 * NOISE).all()
        assert (predicted.reward[member] - fresh.rewards).square().mean().sqrt() < 0.1 * fresh.rewards.std()
    residual = sampled - clean.next_obs
    th.testing.assert_close(residual.std(0), NOISE, rtol=0.15, atol=0.01)


def test_likelihood_learns_where_the_noise_is() -> None:
    """Noise that depends on the state: the predicted deviation follows it, over a factor of eight."""

    def noisy(rows: int, seed: int) -> Transitions:
        of, generator = experience(rows, seed, noise=th.zeros(S)), th.Generator().manual_seed(seed + 10)
        size = 0.05 + 0.4 * th.sigmoid(3 * of.obs[:, :1])
        return of._replace(next_obs=of.next_obs + size * th.randn(rows, S, generator=generator))

    model = ensemble(n_members=1, n_elites=1)
    with seeded(0):
        fit(model, noisy(3000, 1), noisy(1000, 2), batch_size=128)
        for where in (-1.5, 0.0, 1.5):
            obs, actions = th.tensor([[where, 0.0, 0.0]]).expand(4000, -1), th.zeros(4000, A)
            with th.no_grad():
                spread = model.transition(obs, actions)[0].std(0)
            wanted = 0.05 + 0.4 * th.sigmoid(th.tensor(3 * where))
            assert ((spread / wanted).log().abs() < 0.45).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_an_mlp_is_fitted_too(normalize: bool) -> None:
    model, fresh = mlp(normalize=normalize), experience(1000, 2)
    with seeded(0):
        report = fit(model, experience(3000), experience(500, 1), batch_size=128)
    assert report.errors.shape == (1,) and report.history.shape == (report.epochs + 1, 1)
    assert model.updates == report.updates == 24 * report.epochs
    error = (model.step(fresh.obs, fresh.actions).next_obs - fresh.next_obs).square().mean(0).sqrt()
    assert (error < 1.1 * NOISE + 0.03).all()


@pytest.mark.parametrize("build", [ensemble, mlp])
def test_terminations_are_learned(build: Any) -> None:
    model, fresh = build(), experience(2000, 2, ends=True)
    with seeded(0):
        fit(model, experience(3000, ends=True), experience(500, 1, ends=True), batch_size=128, max_epochs=30)
    done = model.step(fresh.obs, fresh.actions).done
    assert ((done > 0.5) == (fresh.dones > 0.5)).float().mean() > 0.97
    assert done.mean().item() == pytest.approx(fresh.dones.mean().item(), rel=0.15)


def test_the_error_is_the_unexplained_share_of_the_variance() -> None:
    """A model that predicts the mean change leaves all of it; one that halves the deviations leaves a quarter."""
    model, of = mlp(termination="none"), experience(3000)
    model.observe_all(of)
    with th.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert HeldOutError(of, of)(model).item() == pytest.approx(1 + FLOOR, rel=1e-4)
    change = of.next_obs - of.obs
    with th.no_grad():
        nearer = of.obs + change.mean(0) + (change - change.mean(0)) / 2
        rewards = of.rewards.mean() + (of.rewards - of.rewards.mean()) / 2
    assert HeldOutError(of, of._replace(next_obs=nearer, rewards=rewards))(model).item() == pytest.approx(0.25, rel=1e-3)
    # Whatever does not move is not counted: one target explained to a quarter, three not at all.
    assert HeldOutError(of, of._replace(rewards=rewards))(model).item() == pytest.approx(0.25**0.25, rel=1e-3)
    still = of._replace(rewards=th.full_like(of.rewards, 2.0))
    assert HeldOutError(still, still._replace(next_obs=nearer))(model).item() == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("build", [ensemble, mlp])
def test_scales_and_rates_are_the_data_sets(build: Any) -> None:
    """Also if other data were seen before."""
    model, of = build(), experience(500, ends=True)
    model.observe(experience(100, 5, noise=th.full((S,), 30.0)))
    fit(model, of, experience(100, 1, ends=True), max_epochs=1)
    for scaler, columns in (
        (model.input_scaler, th.cat([of.obs, of.actions], dim=1)),
        (model.state_scaler, of.next_obs - of.obs),
        (model.reward_scaler, of.rewards[:, None]),
    ):
        th.testing.assert_close(scaler.mean, columns.mean(0), rtol=1e-4, atol=1e-5)
        th.testing.assert_close(scaler.std, columns.std(0, correction=0), rtol=1e-4, atol=1e-5)
    assert model.seen_dones == of.dones.sum() > 0 and model.seen_rows == 500


# ---------------------------------------------------------------- what it keeps


def test_the_best_parameters_are_restored_and_the_elites_are_the_best() -> None:
    """Each network's best epoch, not its last; sorted."""
    model = ensemble(learning_rate=0.02)
    report = fitted(model, max_epochs=15)
    errors = HeldOutError(experience(400), experience(200, 1))(model)
    th.testing.assert_close(errors, report.errors)
    assert th.equal(report.errors, report.history.min(0).values) and (report.errors.diff() >= 0).all()
    assert (report.errors < report.history[-1]).any()
    # What transitions use are the first two.
    model.deterministic = True
    of = experience(60, 3)
    distance = (model.step(of.obs, of.actions).next_obs - model.member_predictions(of.obs, of.actions).next_obs).abs()
    assert (distance.amax(2).argmin(0) < 2).all()


@pytest.mark.parametrize("build", [ensemble, mlp])
def test_a_fit_that_improves_nothing_keeps_the_parameters(build: Any) -> None:
    """The second of two fits moves the wrong way, by a step far too long; the first one's result stays."""
    model = build()
    fitted(model, max_epochs=20)
    before, errors = [parameter.clone() for parameter in model.parameters()], HeldOutError(experience(400), experience(200, 1))
    known = errors(model)
    model.optimizer.param_groups[0]["lr"] = 1.0
    report = fitted(model, patience=2)
    assert report.epochs == 2 and (report.history[1:] > report.history[0]).all()
    assert all(map(th.equal, before, model.parameters()))
    th.testing.assert_close(errors(model), known)


def test_it_ends_when_patience_does() -> None:
    model = ensemble(learning_rate=0.0)
    report = fitted(model, patience=3, max_epochs=50)
    assert report.epochs == 3 and report.updates == 3 * 7 == model.updates
    assert fitted(ensemble(), max_epochs=4).epochs == 4


def test_progress_is_told() -> None:
    told: list[tuple[int, th.Tensor]] = []
    report = fitted(ensemble(), max_epochs=4, progress=lambda epoch, errors: told.append((epoch, errors)))
    assert [epoch for epoch, _ in told] == [1, 2, 3, 4]
    for row, (_, errors) in zip(report.history[1:], told, strict=True):
        assert th.equal(row.sort().values, errors.sort().values)


def test_the_optimizers_state_moves_with_its_network() -> None:
    """A network that changes its place keeps its momentum."""
    model = ensemble()
    seen: dict[str, th.Tensor] = {}

    def look(epoch: int, errors: th.Tensor) -> None:
        first = next(model.parameters())
        seen.update(errors=errors, moments=model.optimizer.state[first]["exp_avg_sq"].clone())

    report = fitted(model, max_epochs=3, progress=look)
    order = [seen["errors"].tolist().index(error) for error in report.history[-1].tolist()]
    assert order != [0, 1, 2, 3]
    moments = model.optimizer.state[next(model.parameters())]["exp_avg_sq"]
    assert th.equal(moments, seen["moments"][order])


def equal_networks(bootstrap: bool) -> GaussianEnsemble:
    model = ensemble(bootstrap=bootstrap, termination="none")
    with th.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    return model


@pytest.mark.parametrize("bootstrap", [True, False])
def test_bootstrap(bootstrap: bool) -> None:
    """Networks that start equal stay so on shared data; data sets of their own part them."""
    model = equal_networks(bootstrap)
    fitted(model, max_epochs=2)
    for parameter in model.parameters():
        apart = (parameter[1:] - parameter[:1]).abs().flatten(1).amax(1)
        assert (apart > 1e-3).all() if bootstrap else (apart < 1e-6).all()


def test_the_same_seed_fits_the_same() -> None:
    models = [ensemble() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        fitted(model, seed=seed)
    assert same(state(models[0]), state(models[1])) and not same(state(models[0]), state(models[2]))


# ---------------------------------------------------------------- when it fails


def spoilt(of: Transitions, value: float) -> Transitions:
    rewards = of.rewards.clone()
    rewards[3::10] = value  # a single row may be in no member's bootstrap sample
    return of._replace(rewards=rewards)


class Diverging(nn.Module):
    """A reward that is sane for the check at construction, and infinite as soon as the fit has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> th.Tensor:
        self.calls += 1
        return next_obs.sum(1) / (0.0 if self.calls > 3 else 1.0)


@pytest.mark.parametrize("build", [ensemble, mlp])
@pytest.mark.parametrize("failure", ["loss", "held-out data", "later"])
@pytest.mark.parametrize("has_state", [True, False])
def test_divergence_restores_everything(build: Any, failure: str, has_state: bool) -> None:
    """Parameters, scales, rates and the optimizer, by value; and the next fit on good data works."""
    model = build(**({"reward_fn": Diverging()} if failure == "later" and not has_state else {}))
    if has_state:
        fitted(model, max_epochs=2)
    before, groups = state(model), copy.deepcopy(model.optimizer.param_groups[0]["lr"])
    data, validation = experience(300, 4, ends=True), experience(100, 5)
    if failure == "later" and has_state:
        # One step of 1e30 leaves finite parameters, and predictions that are not.
        model.optimizer.param_groups[0]["lr"] = groups = 1e30
    data = spoilt(data, float("inf")) if failure == "loss" else data
    validation = spoilt(validation, float("nan")) if failure == "held-out data" else validation
    with pytest.raises(FitError, match=r"loss|held-out data are") as raised:
        fit(model, data, validation, batch_size=64)
    assert isinstance(raised.value, ValueError) and "before the fit" in str(raised.value)
    assert same(before, state(model)) and model.optimizer.param_groups[0]["lr"] == groups
    if failure != "later":
        report = fitted(model)
        assert (report.errors < report.history[0]).all()


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
@pytest.mark.parametrize("name", ["batch_size", "patience", "max_epochs"])
def test_bad_counts(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}={value!r} must"):
        fitted(ensemble(), **{name: value})


def test_bad_data() -> None:
    model, of, none = ensemble(), experience(50), experience(0)
    with pytest.raises(ValueError, match="data has no rows"):
        fit(model, none, of)
    with pytest.raises(ValueError, match="validation has no rows"):
        fit(model, of, none)
    with pytest.raises(ValueError, match=r"data\.weights must be None"):
        fit(model, of._replace(weights=th.ones(50)), of)
    with pytest.raises(ValueError, match="no optimizer"):
        fit(GaussianEnsemble(S, A), of, of)
