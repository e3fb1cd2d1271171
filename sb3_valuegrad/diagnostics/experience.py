"""What a diagnostic of a world model looks at: an algorithm's model, and experience that it was not fitted to."""

from typing import Any

import torch as th

from sb3_valuegrad.errors import check_count
from sb3_valuegrad.held_out import BLOCK, draws_its_own_way, held_out_segments
from sb3_valuegrad.world_models import WorldModel


class NothingToMeasureError(ValueError):
    """There is nothing to measure *yet*: too little experience, or a model that was not fitted so far."""


def world_model_of(agent: Any) -> WorldModel:
    """The world model of an algorithm.

    :raises ValueError: if it has none
    :raises NothingToMeasureError: if it is learned, and was never fitted
    """
    model = getattr(agent, "world_model", None)
    if not isinstance(model, WorldModel):
        raise ValueError(f"agent={type(agent).__name__} has no world model; use an algorithm of sb3_valuegrad")
    if model.is_learned and not model.updates > 0:
        raise NothingToMeasureError(
            f"agent={type(agent).__name__} never fitted its world model: call learn() with more steps than "
            "learning_starts and model_learning_starts. (Nor does it fit one that nothing uses, as with horizon=0.)"
        )
    return model


def held_out_experience(agent: Any, steps: int, most: int) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Stretches of an algorithm's experience that its world model was not fitted to.

    :param agent: an algorithm of this package
    :param steps: K, length of a stretch, 1 to 32
    :param most: at most so many stretches, the newest
    :return: states (K + 1, N, S), actions (K, N, A) scaled to [-1, 1], rewards (K, N)
    :raises ValueError: if nothing can ever be held out as the algorithm is set up, saying why
    :raises NothingToMeasureError: if nothing has been held out yet
    """
    check_count("steps", steps, 1)
    check_count("most", most, 1)
    if steps > BLOCK:
        raise ValueError(f"steps={steps} must be at most {BLOCK}, the length of a held-out stretch")
    check_holds_out(agent)
    buffer, fraction = agent.replay_buffer, agent.model_validation_fraction
    found = held_out_segments(buffer, agent.policy.flat_observations, fraction, steps, most, agent.get_vec_normalize_env())
    if found is None:
        raise NothingToMeasureError(
            f"No stretch of steps={steps} within an episode is held out among the {buffer.size()} steps stored: collect "
            "more experience (a loaded model needs load_replay_buffer, too), or ask for fewer steps"
        )
    return found


def check_holds_out(agent: Any) -> None:
    """:raises ValueError: if nothing can ever be held out as the algorithm is set up, saying why
    :raises NothingToMeasureError: if there is no replay buffer, as in a loaded model
    """
    buffer = agent.replay_buffer
    if buffer is None:
        raise NothingToMeasureError("replay_buffer=None: load the experience, too, with load_replay_buffer")
    if agent.model_validation_fraction == 0:
        raise ValueError(
            "model_validation_fraction=0.0 holds no experience out of the world model's fit; train with, say, 0.05"
        )
    if draws_its_own_way(buffer):
        raise ValueError(
            f"replay_buffer_class={type(buffer).__name__} draws its own samples, so none of its rows are held out; train "
            "with SB3's ReplayBuffer"
        )
    if getattr(buffer, "optimize_memory_usage", False):
        raise ValueError("optimize_memory_usage=True keeps no s' of its own to compare with; train with False")
