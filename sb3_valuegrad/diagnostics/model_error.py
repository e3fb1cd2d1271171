"""How far a world model's predictions drift from what really happened."""

import torch as th

from sb3_valuegrad.world_models.base import WorldModel


@th.no_grad()
def open_loop_errors(
    model: WorldModel, states: th.Tensor, actions: th.Tensor, rewards: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """Prediction error by horizon when the model is fed its own predictions and the actions really taken.

    :param model: the world model
    :param states: real states (K + 1, N, S)
    :param actions: real actions (K, N, A), scaled to [-1, 1]
    :param rewards: real rewards (K, N)
    :return: errors of the states after 1..K steps (K,), in standard deviations of the states over the data (root mean
        square over rows and over the dimensions that vary), and of the rewards (K,), in theirs
    """
    spread = states.flatten(0, 1).std(dim=0)
    varies = spread > 1e-6
    reward_spread = rewards.std().clamp(min=1e-6)
    predicted, state_errors, reward_errors = states[0], [], []
    for real_next, action, reward in zip(states[1:], actions, rewards, strict=True):
        predicted, predicted_reward, _ = model.step(predicted, action)
        errors = ((predicted - real_next) / spread)[:, varies]
        state_errors.append(errors.square().mean().sqrt())
        reward_errors.append((predicted_reward - reward).square().mean().sqrt() / reward_spread)
    return th.stack(state_errors), th.stack(reward_errors)
