"""How far a world model's predictions drift from what really happened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th

from sb3_valuegrad.diagnostics.experience import held_out_experience, world_model_of
from sb3_valuegrad.diagnostics.figures import axes
from sb3_valuegrad.world_models.base import WorldModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ModelError(NamedTuple):
    """Open-loop prediction error by horizon, see :func:`open_loop_errors`."""

    state: np.ndarray
    """(K,): after 1..K steps; 1 is no better than predicting that nothing changes"""
    reward: np.ndarray
    """(K,): of the 1st..K-th reward; 1 is no better than predicting their mean"""
    stretches: int
    """how many stretches of held-out experience these are means over"""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Both errors against the horizon, as in Feinberg et al. 2018 (MVE), Fig. 1.

        :param ax: where to draw; None: a new figure
        :raises ImportError: without matplotlib
        """
        steps = np.arange(1, len(self.state) + 1)
        ax = axes(ax, "Open-loop error of the world model", "steps imagined", "relative error")
        ax.plot(steps, self.state, marker="o", label="state")
        ax.plot(steps, self.reward, marker="s", label="reward")
        ax.axhline(1.0, color="grey", linestyle=":", label="nothing changes / mean reward")
        ax.set_ylim(bottom=0)
        ax.legend()
        return ax


def model_error(agent: Any, horizon: int = 10, most: int = 512) -> ModelError:
    """Error by horizon of an algorithm's world model on experience that it was not fitted to (MVE, Fig. 1).

    :param agent: an algorithm of this package that has trained, with its replay buffer
    :param horizon: K, the longest open-loop prediction, 1 to 32 steps
    :param most: at most so many stretches of ``horizon`` steps, the newest
    :return: errors of state and reward by horizon
    :raises ValueError: if the algorithm has no world model or holds nothing out, or ``horizon`` is out of range
    :raises NothingToMeasureError: a ``ValueError``, if nothing has been fitted or held out yet
    """
    model = world_model_of(agent)
    states, actions, rewards = held_out_experience(agent, horizon, most)
    of_states, of_rewards = open_loop_errors(model, states, actions, rewards)
    return ModelError(of_states.cpu().numpy(), of_rewards.cpu().numpy(), actions.shape[1])


@th.no_grad()
def open_loop_errors(
    model: WorldModel, states: th.Tensor, actions: th.Tensor, rewards: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """Prediction error by horizon when the model is fed its own predictions and the actions really taken.

    Of a probabilistic model the mean is compared, of an ensemble the elites' mean in every step: a sample's noise is no
    error. It draws no random numbers.

    :param model: the world model
    :param states: real states (K + 1, N, S)
    :param actions: real actions (K, N, A), scaled to [-1, 1]
    :param rewards: real rewards (K, N)
    :return: errors of the states after 1..K steps (K,), relative to how far the states moved in as many steps (root
        mean square over rows, and over the dimensions that move): 1 is no better than predicting that nothing changes.
        And of the rewards (K,), in standard deviations of the rewards: 1 is no better than predicting their mean
    """
    reward_spread = rewards.std().clamp(min=1e-6)
    predicted, state_errors, reward_errors = states[0], [], []
    for real_next, action, reward in zip(states[1:], actions, rewards, strict=True):
        expected = model.member_predictions(predicted, action)
        predicted, predicted_reward = (part[: model.members].mean(0) for part in expected[:2])
        moved = (real_next - states[0]).square().mean(0).sqrt()
        relative = ((predicted - real_next) / moved)[:, moved > 1e-6]
        state_errors.append(relative.square().mean().sqrt())
        reward_errors.append((predicted_reward - reward).square().mean().sqrt() / reward_spread)
    return th.stack(state_errors), th.stack(reward_errors)
