"""A world model that is known: the user's own torch functions, right or wrong."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch as th

from sb3_valuegrad.world_models.base import Step, Transitions, WorldModel
from sb3_valuegrad.world_models.functions import Function, check_gradients, function_of, tried

# Where in the action's range the functions are tried before training; not at its ends, where a root may have no gradient.
TRIED_ACTIONS = (-0.5, 0.0, 0.5)


class AnalyticWorldModel(WorldModel):
    """``s' = f(s, a)``, ``r(s, a, s')`` and possibly a chance of termination, given as differentiable torch functions.

    Everything is in the environment's own units: observations as it returns them (flat, so ``VecNormalize`` is refused),
    actions within its bounds. Nothing is fitted. MPG calls it the prior model (Guan et al., sec. V-A and App. B).

    A function is saved by its import path: define it in a module, not in the script that runs, or name it as
    ``"package.module:function"`` (in YAML, too). An ``nn.Module`` may stand in a function's place; it is frozen.

    :param obs_dim: S, length of a flat observation
    :param action_dim: A, number of actions
    :param transition_fn: (obs (N, S), actions (N, A)) to the next observations (N, S), differentiable in both
    :param reward_fn: (obs (N, S), actions (N, A), next_obs (N, S)) to rewards (N,), differentiable. Beware: the
        ``reward_fn`` of the learned models sees actions in [-1, 1]
    :param termination_fn: from the same to (N,), whether (bool) or with what chance the episode terminates; it may be a step,
        without gradient. None: never
    :param noise_mean: added to every next observation, a number or one for each of S
    :param noise_std: standard deviation of Gaussian noise on it, likewise; the algorithm's
        ``n_samples`` says how many samples the policy's objective averages
    :param batched: functions take rows, as above; False: they take one state (S,) and one action (A,), and are vectorised
    :raises ValueError: for functions that cannot be imported or called, and noise of the wrong length
    """

    takes_raw_data = True
    is_learned = False  # nor is a network in a function's place
    action_centre: th.Tensor
    action_range: th.Tensor
    noise_mean: th.Tensor
    noise_std: th.Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        transition_fn: Function | str,
        reward_fn: Function | str,
        termination_fn: Function | str | None = None,
        noise_mean: float | Sequence[float] = 0.0,
        noise_std: float | Sequence[float] = 0.0,
        batched: bool = True,
    ):
        super().__init__(obs_dim, action_dim)
        self.transition_fn = function_of("transition_fn", transition_fn)
        self.reward_fn = function_of("reward_fn", reward_fn)
        self.termination_fn = None if termination_fn is None else function_of("termination_fn", termination_fn)
        self.batched = batched
        self.register_buffer("noise_mean", _vector("noise_mean", noise_mean, obs_dim), persistent=False)
        self.register_buffer("noise_std", _vector("noise_std", noise_std, obs_dim), persistent=False)
        if (self.noise_std < 0).any():
            raise ValueError(f"noise_std={noise_std} must not be negative")
        self.is_noisy = bool(self.noise_std.any())
        self.has_bias = bool(self.noise_mean.any())
        self.register_buffer("action_centre", th.zeros(action_dim), persistent=False)
        self.register_buffer("action_range", th.ones(action_dim), persistent=False)

    def set_action_bounds(self, low: th.Tensor, high: th.Tensor) -> None:
        """What -1 and 1 stand for, (A,) each."""
        self.action_centre.copy_(0.5 * (low + high))
        self.action_range.copy_(0.5 * (high - low))

    # ---------------------------------------------------------------- the model

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, None]:
        """Next states (N, S), noise included."""
        next_obs = self._expected(obs, actions)
        if self.is_noisy:
            next_obs = th.addcmul(next_obs, self.noise_std, th.randn_like(next_obs))
        return next_obs, None

    def _expected(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Next states (N, S) without the noise's chance part."""
        next_obs = self._call(self.transition_fn, obs, self._scaled(actions))
        return next_obs + self.noise_mean if self.has_bias else next_obs

    def outcome(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """Rewards (M,), and chances of termination (M,) where they are given."""
        step = (obs, self._scaled(actions), next_obs)
        dones = None if self.termination_fn is None else self._call(self.termination_fn, *step)
        return self._call(self.reward_fn, *step), dones

    def member_predictions(self, obs: th.Tensor, actions: th.Tensor) -> Step:
        """The model's word for all rows, without noise, with a first axis of 1."""
        return self._step(obs, actions, self._expected(obs, actions), None).of_one_member()

    def losses(self, data: Transitions) -> dict[str, th.Tensor]:
        """None: there is nothing to learn."""
        return {}

    def _scaled(self, actions: th.Tensor) -> th.Tensor:
        """Actions in [-1, 1] to the environment's units."""
        return th.addcmul(self.action_centre, self.action_range, actions)

    def _call(self, function: Function, *arguments: th.Tensor) -> th.Tensor:
        """A function's result in the states' own type: one constant in float64 must not carry over to the networks."""
        called = function if self.batched else th.vmap(function, randomness="different")
        return called(*arguments).to(arguments[0].dtype)

    # ---------------------------------------------------------------- before training

    def check(self, obs: th.Tensor) -> None:
        """Try the functions on real states.

        :param obs: (N, S), as the environment returned them
        :raises ValueError: if one fails, or gives a wrong shape, another device, something not finite, or no gradient; naming
            it
        """
        choices = obs.new_tensor(TRIED_ACTIONS).repeat_interleave(len(obs))
        obs = obs.repeat(len(TRIED_ACTIONS), 1).requires_grad_()
        actions = self._scaled(choices[:, None].expand(-1, self.action_dim)).detach().requires_grad_()
        # A function may draw its own noise, which must not change what a seeded run draws later.
        with th.enable_grad(), th.random.fork_rng(devices=[obs.device] if obs.device.type == "cuda" else []):
            state = {"obs": obs, "actions": actions}
            next_obs = tried("transition_fn", partial(self._call, self.transition_fn), state, obs.shape)
            check_gradients("transition_fn", next_obs, state, each=True)
            step = {**state, "next_obs": next_obs.detach().requires_grad_()}
            rewards = tried("reward_fn", partial(self._call, self.reward_fn), step, obs.shape[:1])
            check_gradients("reward_fn", rewards, step, each=False)
            if self.termination_fn is None:
                return
            dones = tried("termination_fn", partial(self._call, self.termination_fn), step, obs.shape[:1])
            if not ((dones >= 0) & (dones <= 1)).all():
                raise ValueError(f"termination_fn must return chances in [0, 1], not {dones.tolist()}")


def _vector(name: str, given: float | Sequence[float], length: int) -> th.Tensor:
    values = th.as_tensor(np.asarray(given, dtype=np.float32))
    if values.dim() > 1 or values.numel() not in (1, length) or not th.isfinite(values).all():
        raise ValueError(
            f"{name}={given} must be a finite number, or a sequence of {length}: one for each of the observation's"
        )
    return values.expand(length).clone()
