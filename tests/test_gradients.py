"""The two tools of every gradient step, and what a run does when something is not finite."""

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from small_models import changed, draw, snapshot, with_model
from torch import nn

from sb3_valuegrad import DVG, DVPG
from sb3_valuegrad.gradients import frozen, guarded_step

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fused Adam": (th.optim.Adam, {"fused": True}),
    "foreach Adam": (th.optim.Adam, {"foreach": True}),
    "plain Adam": (th.optim.Adam, {"foreach": False}),
    "fused AdamW": (th.optim.AdamW, {"fused": True}),
    "momentum SGD": (th.optim.SGD, {"momentum": 0.9}),
}
BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture(params=OPTIMIZERS, ids=[name.replace(" ", "-") for name in OPTIMIZERS])
def kind(request: Any) -> tuple[type[th.optim.Optimizer], dict[str, Any]]:
    return OPTIMIZERS[request.param]


def network() -> Any:
    """Weight matrices that are not square, with the same numbers every time."""
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    generator = th.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = th.randn(parameter.shape, generator=generator)
    return net


def loss_of(net: nn.Module, scale: float = 1.0) -> th.Tensor:
    inputs = th.randn(16, 5, generator=th.Generator().manual_seed(1))
    return (scale * net(inputs)).square().mean()


def step(net: nn.Module, optimizer: th.optim.Optimizer, scale: float = 1.0, max_grad_norm: float | None = None) -> th.Tensor:
    return guarded_step(loss_of(net, scale), [optimizer], max_grad_norm)[0][0]


def moments(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    state = optimizer.state_dict()["state"]
    return [value.clone() for entry in state.values() for value in entry.values() if isinstance(value, th.Tensor)]


# ---------------------------------------------------------------- guarded_step


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_update_is_never_applied(kind: Any, bad: float, max_grad_norm: float | None) -> None:
    """Parameters and moments stay, and the next good step is the one that would have been taken without it."""
    net, (optimizer_class, arguments) = network(), kind
    optimizer = optimizer_class(net.parameters(), lr=1e-2, **arguments)
    step(net, optimizer)
    reference = copy.deepcopy(net)
    reference_optimizer = optimizer_class(reference.parameters(), lr=1e-2, **arguments)
    reference_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    before, of_optimizer = snapshot(net), moments(optimizer)
    assert not th.isfinite(step(net, optimizer, bad, max_grad_norm))
    assert not changed(net, before)
    assert all(th.equal(actual, expected) for actual, expected in zip(moments(optimizer), of_optimizer, strict=True))
    assert all(parameter.grad is None for parameter in net.parameters())

    for _ in range(2):
        assert th.isfinite(step(net, optimizer, 1.0, max_grad_norm))
        step(reference, reference_optimizer, 1.0, max_grad_norm)
    assert len(changed(net, before)) == len(before)
    assert not changed(net, snapshot(reference))


def test_the_very_first_update_may_be_bad(kind: Any) -> None:
    """Before the optimizer has any moments."""
    net, (optimizer_class, arguments) = network(), kind
    optimizer = optimizer_class(net.parameters(), lr=1e-2, **arguments)
    before = snapshot(net)
    step(net, optimizer, float("nan"))
    assert not changed(net, before)
    assert all(not value.any() for value in moments(optimizer))
    step(net, optimizer)
    reference = network()
    step(reference, optimizer_class(reference.parameters(), lr=1e-2, **arguments))
    assert not changed(net, snapshot(reference))


@pytest.mark.parametrize("bad", BAD)
def test_one_bad_gradient_is_enough(kind: Any, bad: float) -> None:
    """A finite loss does not vouch for its gradient: here one entry of one parameter."""
    net, (optimizer_class, arguments) = network(), kind
    optimizer = optimizer_class(net.parameters(), lr=1e-2, **arguments)
    before = snapshot(net)
    net[2].bias.register_hook(lambda grad: grad.index_fill(0, th.tensor([1]), bad))
    assert not th.isfinite(step(net, optimizer))
    assert not changed(net, before)


def test_a_bad_loss_is_enough(kind: Any) -> None:
    """An infinite constant in the loss leaves the gradients finite."""
    net, (optimizer_class, arguments) = network(), kind
    optimizer = optimizer_class(net.parameters(), lr=1e-2, **arguments)
    before, loss = snapshot(net), loss_of(net) + float("inf")
    assert th.isfinite(guarded_step(loss, [optimizer])[0][0])
    assert not changed(net, before)


@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e6])
def test_the_norm_is_returned_unclipped_and_applied_clipped(max_grad_norm: float) -> None:
    net = network()
    optimizer = th.optim.SGD(net.parameters(), lr=1.0)
    gradients = th.autograd.grad(loss_of(net), list(net.parameters()))
    norm = th.sqrt(sum((gradient.square().sum() for gradient in gradients), start=th.zeros(())))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    th.testing.assert_close(step(net, optimizer, 1.0, max_grad_norm), norm)
    share = min(1.0, max_grad_norm / norm.item())
    for parameter, start, gradient in zip(net.parameters(), before, gradients, strict=True):
        th.testing.assert_close(parameter.detach(), start - share * gradient, rtol=1e-4, atol=1e-6)


def test_each_optimizer_clips_its_own_norm() -> None:
    """One backward pass for two networks: a large gradient of one does not shrink the other's step."""
    nets = [network(), network()]
    loss = loss_of(nets[0]) + loss_of(nets[1], 100.0)
    expected = []
    for net, gradients in zip(
        nets, [th.autograd.grad(loss, list(n.parameters()), retain_graph=True) for n in nets], strict=True
    ):
        norm = th.nn.utils.get_total_norm(gradients)
        expected.append(
            [p.detach() - g * min(1.0, 0.5 / norm.item()) for p, g in zip(net.parameters(), gradients, strict=True)]
        )
    norms, _ = guarded_step(loss, [th.optim.SGD(net.parameters(), lr=1.0) for net in nets], 0.5)
    assert len(norms) == 2 and norms[1] > 100 * norms[0] > 50
    for net, parameters in zip(nets, expected, strict=True):
        for actual, value in zip(net.parameters(), parameters, strict=True):
            th.testing.assert_close(actual.detach(), value, rtol=1e-4, atol=1e-5)


def test_a_guarded_step_is_the_optimizers_own(kind: Any) -> None:
    net, (optimizer_class, arguments) = network(), kind
    optimizer = optimizer_class(net.parameters(), lr=1e-2, **arguments)
    plain = copy.deepcopy(net)
    plain_optimizer = optimizer_class(plain.parameters(), lr=1e-2, **arguments)
    for _ in range(3):
        step(net, optimizer)
        plain_optimizer.zero_grad()
        loss_of(plain).backward()
        plain_optimizer.step()
    assert not changed(net, snapshot(plain))


def test_loading_between_steps_goes_on_from_what_was_loaded(kind: Any) -> None:
    """The moments that a step looks up once are looked up anew, counts of steps included."""
    net, (optimizer_class, arguments) = network(), kind
    optimizer = optimizer_class(net.parameters(), lr=1e-2, **arguments)
    for _ in range(2):
        step(net, optimizer)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    for _ in range(3):
        step(net, optimizer)
    expected, of_optimizer = snapshot(net), moments(optimizer)
    net.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    for _ in range(3):
        step(net, optimizer)
    assert not changed(net, expected)
    assert all(th.equal(actual, value) for actual, value in zip(moments(optimizer), of_optimizer, strict=True))


def test_counts_of_steps_are_saved_one_for_each_parameter() -> None:
    net = network()
    optimizer = th.optim.Adam(net.parameters(), fused=True)
    for _ in range(3):
        step(net, optimizer)
    states = optimizer.state_dict()["state"].values()
    assert [state["step"].shape for state in states] == [()] * 4 and all(state["step"] == 3 for state in states)
    optimizer.state[net[0].weight]["step"] = th.tensor(7.0)  # someone else's
    step(net, optimizer)
    assert [state["step"].item() for state in states] == [8, 4, 4, 4]


def test_fused_steps_are_right_for_weight_matrices() -> None:
    """PyTorch 2.13's fused CPU kernels ignore a gradient's strides. ``.backward()`` accumulates in the parameter's own
    layout, so our path is right; ``torch.autograd.grad`` returns transposed strides for weight matrices and is not."""
    nets = {name: network() for name in ("fused Adam", "plain Adam")}
    for name, net in nets.items():
        optimizer_class, arguments = OPTIMIZERS[name]
        optimizer = optimizer_class(net.parameters(), lr=1e-2, **arguments)
        for _ in range(5):
            guarded_step(loss_of(net), [optimizer])
    for fused, plain in zip(nets["fused Adam"].parameters(), nets["plain Adam"].parameters(), strict=True):
        th.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("horizon", [0, 2])
def test_gradients_of_a_real_update_have_the_parameters_strides(horizon: int) -> None:
    """The same for the networks and losses of an agent: actor through the model, critic and model together."""
    agent = with_model(DVG, horizon=horizon)
    batch = draw(agent)
    losses = [agent._actor_loss(batch)[0], agent._critic_loss(batch)[0]]
    losses.append(th.stack(list(agent.world_model.losses(batch.transitions).values())).sum())
    th.stack(losses).sum().backward()
    for network in (agent.actor, agent.critic, agent.world_model):
        for parameter in network.parameters():
            assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()


# ---------------------------------------------------------------- frozen


def test_frozen_keeps_the_gradient_in_the_inputs() -> None:
    net, inputs = network(), th.ones(3, 5, requires_grad=True)
    with frozen(net.parameters()):
        output = net(inputs).sum()
    output.backward()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert inputs.grad is not None and inputs.grad.abs().sum() > 0


def test_frozen_restores_what_was_there() -> None:
    """Also after an exception, when nested, and without thawing what was frozen before."""
    net = network()
    net[0].bias.requires_grad = False
    flags = [parameter.requires_grad for parameter in net.parameters()]
    with pytest.raises(KeyError), frozen(net.parameters()):
        assert not any(parameter.requires_grad for parameter in net.parameters())
        raise KeyError
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    with frozen(net.parameters()):
        with frozen(net[0].parameters()):
            pass
        assert not any(parameter.requires_grad for parameter in net.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    with frozen(parameter for parameter in net.parameters()):  # a generator is used up only once
        assert not any(parameter.requires_grad for parameter in net.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()] == flags


def test_an_exception_in_the_actors_loss_leaves_the_flags() -> None:
    agent = with_model(DVPG, horizon=2)
    batch = draw(agent)

    def fails(*args: Any) -> Any:
        raise RuntimeError("out of memory")

    agent.critic.q1 = fails
    flags = [parameter.requires_grad for parameter in agent.policy.parameters()]
    with pytest.raises(RuntimeError):
        agent._actor_loss(batch)[0]
    assert [parameter.requires_grad for parameter in agent.policy.parameters()] == flags


# ---------------------------------------------------------------- a run that meets a bad number


@pytest.mark.parametrize("optimizer_kwargs", [None, {"foreach": False}], ids=["fused", "unfused"])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_reward_in_the_buffer(bad: float, optimizer_kwargs: dict[str, Any] | None, tmp_path: Path) -> None:
    """``train()`` raises and names the quantity; critic and model, which would have learned from it, are as they were,
    the actor's own step was a good one, and the agent can be saved, loaded and trained."""
    agent = with_model(DVPG, policy_kwargs={"optimizer_kwargs": optimizer_kwargs})
    agent.train(2, 32)
    good = agent.replay_buffer.rewards.copy()
    agent.replay_buffer.rewards[:] = bad
    before, model_before = snapshot(agent.critic), snapshot(agent.world_model)
    of_critic, of_model = moments(agent.critic.optimizer), moments(agent.world_model.optimizer)
    with pytest.raises(ValueError, match=r"(critic|model_\w+)_loss is (nan|inf|-inf) after 200 steps"):
        agent.train(3, 32)
    assert not changed(agent.critic, before)
    # Running statistics of what was good (the inputs) go on; no parameter and no statistic of rewards does.
    moved = changed(agent.world_model, model_before)
    assert all(name.startswith(("input_scaler.", "state_scaler.", "seen_", "updates")) for name in moved)
    for optimizer, expected in ((agent.critic.optimizer, of_critic), (agent.world_model.optimizer, of_model)):
        assert all(th.equal(actual, value) for actual, value in zip(moments(optimizer), expected, strict=True))
    assert all(th.isfinite(value).all() for value in agent.policy.state_dict().values())

    agent.save(tmp_path / "agent")
    loaded = DVPG.load(tmp_path / "agent", device="cpu")
    assert not changed(loaded.policy, snapshot(agent.policy))
    agent.replay_buffer.rewards[:] = good
    loaded.replay_buffer = agent.replay_buffer
    loaded.set_logger(agent.logger)
    loaded.train(3, 32)
    assert len(changed(loaded.critic, before)) == len(before)
    assert np.isfinite(loaded.logger.name_to_value["train/critic_loss"])


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_observation_in_the_buffer(bad: float) -> None:
    """Here every loss is bad, and no network moves at all."""
    agent = with_model(DVPG, horizon=2)
    agent.replay_buffer.observations[:, 0, 1] = bad
    before = snapshot(agent.policy)
    with pytest.raises(ValueError, match=r"is (nan|inf|-inf) after 200 steps"):
        agent.train(3, 32)
    counts_and_rewards = ("world_model.seen_", "world_model.updates", "world_model.reward_scaler.")
    assert all(name.startswith(counts_and_rewards) for name in changed(agent.policy, before))


def test_an_exploding_model_stops_the_actor_alone() -> None:
    """A rollout that leaves the numbers: the actor's step is withheld and named, the critic's is taken."""
    agent = with_model(DVG, horizon=3)
    agent._trains_model = lambda: False
    with th.no_grad():
        agent.world_model.state_scaler.spread.fill_(1e30)
    before = snapshot(agent.policy)
    with pytest.raises(ValueError, match=r"^actor_"):
        agent.train(1, 32)
    names = changed(agent.policy, before)
    assert any(name.startswith("critic.") for name in names)
    assert not any(name.startswith(("actor", "world_model")) for name in names)


@pytest.mark.parametrize("optimizer_class", [th.optim.Adam, th.optim.AdamW])
def test_the_direct_kernel_is_the_optimizers_own_step(optimizer_class: Any) -> None:
    """Parameters, moments and step counts are the same bits, through a withheld step and a change of the rate."""
    net = network()
    reference = copy.deepcopy(net)
    optimizer, expected = (
        optimizer_class(n.parameters(), lr=1e-2, weight_decay=1e-2, betas=(0.8, 0.9), eps=1e-6, fused=True)
        for n in (net, reference)
    )
    for scale in (1.0, 2.0, float("nan"), 3.0, 1e-2):
        for group in (*optimizer.param_groups, *expected.param_groups):
            group["lr"] *= 0.5
        step(net, optimizer, scale)
        if math.isfinite(scale):
            expected.zero_grad()
            loss_of(reference, scale).backward()
            expected.step()
        assert all(th.equal(a, b) for a, b in zip(net.parameters(), reference.parameters(), strict=True))
        for own, other in zip(optimizer.state.values(), expected.state.values(), strict=True):
            assert all(th.equal(own[name], other[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_hooks_and_schedulers_of_the_optimizer_are_called() -> None:
    net = network()
    optimizer = th.optim.Adam(net.parameters(), lr=1e-2, fused=True)
    calls = []
    handle = optimizer.register_step_post_hook(lambda *_: calls.append("hook"))
    step(net, optimizer)
    step(net, optimizer)
    assert calls == ["hook", "hook"]
    handle.remove()
    scheduler = th.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns where the scheduler steps and the optimizer has not
        step(net, optimizer)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 5e-3
