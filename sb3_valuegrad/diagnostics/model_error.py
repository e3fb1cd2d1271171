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
    :return: errors of the states after 1..K steps (K,), relative to how far the states moved in as many steps (root
        mean square over rows, and over the dimensions that move): 1 is no better than predicting that nothing changes.
        And of the rewards (K,), in standard deviations of the rewards: 1 is no better than predicting their mean
    """
    reward_spread = rewards.std().clamp(min=1e-6)
    predicted, state_errors, reward_errors = states[0], [], []
    for real_next, action, reward in zip(states[1:], actions, rewards, strict=True):
        predicted, predicted_reward, _ = model.step(predicted, action)
        moved = (real_next - states[0]).square().mean(0).sqrt()
        relative = ((predicted - real_next) / moved)[:, moved > 1e-6]
        state_errors.append(relative.square().mean().sqrt())
        reward_errors.append((predicted_reward - reward).square().mean().sqrt() / reward_spread)
    return th.stack(state_errors), th.stack(reward_errors)
