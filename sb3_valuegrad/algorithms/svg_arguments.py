"""What SVG's arguments, its environment and its replay buffer must be like, and why."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_valuegrad.errors import check_count
from sb3_valuegrad.trajectories import TrajectoryReplayBuffer


def check_svg(model: Any) -> None:
    """:raises ValueError: naming the argument, its value and the way out"""
    check_count("target_update_interval", model.target_update_interval, 1)
    if model.policy_gradient_steps is not None:
        check_count("policy_gradient_steps", model.policy_gradient_steps, 1)
    if model.policy_window is not None:
        check_count("policy_window", model.policy_window, 1)
    if model.max_importance_weight is not None and not model.max_importance_weight > 0:
        raise ValueError(f"max_importance_weight={model.max_importance_weight} must be positive; None does not truncate")
    largest = min(1.0, model.max_importance_weight or 1.0)
    if not 0 <= model.min_overlap < largest:
        raise ValueError(
            f"min_overlap={model.min_overlap} must be in [0, {largest:g}), the largest mean of min(w, 1) that there is (see "
            f"max_importance_weight={model.max_importance_weight}); 0 never waits"
        )
    if not model.kl_coef >= 0:
        raise ValueError(f"kl_coef={model.kl_coef} must not be negative; 0 is no penalty")
    if model.kl_coef > 0 and (model.policy_gradient_steps is None or model.horizon is None):
        raise ValueError(
            f"kl_coef={model.kl_coef} keeps the policy near to what it was before several steps after an episode; give "
            "policy_gradient_steps, and a finite horizon"
        )
    if model.action_noise is not None:
        raise ValueError(
            f"action_noise={model.action_noise!r}: SVG explores by its policy's own noise, whose likelihood it needs; use "
            "action_noise=None and policy_kwargs=dict(noise_std=...)"
        )
    if model.target_estimator == "td-k":
        raise ValueError(
            'target_estimator="td-k" has no importance weight for its real transition, and SVG\'s critic needs one; use "mve"'
        )
    _check_buffer(model)
    if model.horizon is None:
        _check_whole_episodes(model)


def _check_buffer(model: Any) -> None:
    """SVG needs to know which steps follow one another, and how likely their actions were."""
    if not isinstance(model.observation_space, spaces.Box):
        raise ValueError(
            f"observation_space={model.observation_space}: SVG replays trajectories of Box observations; wrap the environment "
            "in gymnasium.wrappers.FlattenObservation"
        )
    given = model.replay_buffer_class
    if given is not None and not issubclass(given, TrajectoryReplayBuffer):
        raise ValueError(
            f"replay_buffer_class={given.__name__} does not keep trajectories; leave it out, or use a subclass of "
            "sb3_valuegrad.trajectories.TrajectoryReplayBuffer"
        )
    if model.n_steps > 1:
        raise ValueError(f"n_steps={model.n_steps}: SVG's returns are one-step (horizon is the policy's); use n_steps=1")
    if model.optimize_memory_usage:
        raise ValueError("optimize_memory_usage=True would lose the last state of an episode, which SVG needs; use False")


def _check_whole_episodes(model: Any) -> None:
    """SVG(inf)'s estimate is of the policy that lived through the whole episode, and of no other."""
    if model.policy_replay:
        raise ValueError(
            "policy_replay=True with horizon=None: SVG(inf) is on-policy. The importance weight of a whole episode is a "
            "product over all its steps, so that old episodes weigh nothing or everything; use policy_replay=False, or a "
            "finite horizon"
        )
    if model.policy_gradient_steps not in (None, 1):
        raise ValueError(
            f"policy_gradient_steps={model.policy_gradient_steps} with horizon=None: after the first step the episode is "
            "another policy's; use 1, or a finite horizon"
        )
    if model.n_envs > 1:
        raise ValueError(
            f"env has {model.n_envs} environments, and with horizon=None the policy changes whenever one of their episodes "
            "ends: the others' would be several policies' work. Use one environment, or a finite horizon"
        )


def check_train_freq(model: Any) -> None:
    """:raises ValueError: if an episode would go on while the policy changes"""
    freq = model.train_freq
    assert isinstance(freq, TrainFreq)
    if model.horizon is None and freq.unit == TrainFrequencyUnit.STEP and freq.frequency > 1:
        raise ValueError(
            f"train_freq={freq.frequency} with horizon=None: the policy would learn in the middle of an episode; use "
            'train_freq=1 or train_freq=(1, "episode")'
        )


def check_replay(model: Any) -> None:
    """:raises ValueError: if stored experience is without what SVG needs to know of it"""
    buffer = model.replay_buffer
    rebuild = (
        "Let SVG collect the experience anew, or add it to model.replay_buffer with "
        'infos=[{"behaviour_log_prob": log q(a|s) of the action scaled to [-1, 1]}]; importance_weights=False does without'
    )
    if not isinstance(buffer, TrajectoryReplayBuffer):
        raise ValueError(
            f"replay_buffer is a {type(buffer).__name__} without trajectories: it was saved by another algorithm. {rebuild}"
        )
    if model.importance_weights and np.isnan(buffer.log_probs[: buffer.size()]).any():
        raise ValueError(f"replay_buffer has steps without log-probabilities of their actions. {rebuild}")
