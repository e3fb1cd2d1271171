"""Deterministic world model of multi-layer perceptrons."""

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_valuegrad.layers import run_layers, squared_error
from sb3_valuegrad.world_models.base import Transitions
from sb3_valuegrad.world_models.learned import LearnedWorldModel, OutcomeFunction
from sb3_valuegrad.world_models.networks import ParallelMlp


class MlpWorldModel(LearnedWorldModel):
    """Deterministic world model: the next state, the reward and the chance of termination from ``(s, a)``.

    The default learns best: one network for all heads, inputs and targets on unit scale, the change of the state as
    target. The DVPG paper's model (App. C) is
    ``dict(net_arch=[64, 64], activation_fn=nn.ReLU, share_network=False, normalize=False, predict_change=False,
    weight_decay=1e-4, termination="none")``: separate networks for reward and transition, squared error, an L2 term
    whose size the paper does not give.

    :param obs_dim: S, length of a flat observation
    :param action_dim: A, number of actions
    :param net_arch: units of each hidden layer
    :param activation_fn: smooth ones (SiLU) give smoother value gradients
    :param share_network: one network with all heads; False: one network for each
    :param normalize: scale inputs and targets by running statistics
    :param predict_change: the network predicts ``s' - s``; False: ``s'``
    :param weight_decay: L2 term, passed to the optimizer (AdamW decouples it, Adam does not)
    :param reward_fn: the reward if it is known, a differentiable torch function of
        (obs (N, S), actions (N, A) in [-1, 1], next_obs (N, S)) to (N,); None: learned. Under ``VecNormalize`` the
        states are the normalised ones, and the reward must be on its scale
    :param termination: "learned", "none", or a torch function like ``reward_fn`` that gives chances in [0, 1]
    :raises ValueError: for an unknown ``termination`` and for functions whose result has the wrong shape
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        net_arch: tuple[int, ...] | list[int] = (256, 256),
        activation_fn: type[nn.Module] = nn.SiLU,
        share_network: bool = True,
        normalize: bool = True,
        predict_change: bool = True,
        weight_decay: float = 0.0,
        reward_fn: OutcomeFunction | None = None,
        termination: str | OutcomeFunction = "learned",
    ):
        super().__init__(obs_dim, action_dim, normalize, predict_change, weight_decay, reward_fn, termination)
        extra_heads = self.extra_heads
        self.share_network = share_network
        self.network: nn.Module
        if share_network:
            self.network = nn.Sequential(
                *create_mlp(obs_dim + action_dim, obs_dim + extra_heads, list(net_arch), activation_fn)
            )
        else:
            # Of the reward's and the termination's networks only the first output counts.
            self.network = ParallelMlp(1 + extra_heads, obs_dim + action_dim, obs_dim, net_arch, activation_fn)

    def _heads(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Raw outputs: for the state (N, S), and for what else is learned (reward, termination, in this order) (N, E)."""
        output = run_layers(self.network, inputs) if self.share_network else self.network(inputs)
        if self.share_network:
            # One split: its gradient is one concatenation, that of two slices two blocks of zeros and a sum.
            state, others = output.split([self.obs_dim, output.shape[1] - self.obs_dim], dim=1)
            return state, others
        # Unbound, not indexed: its gradient is one stack, that of an index a block of zeros and a sum.
        state, *others = output.unbind()
        if not others:
            return state, output.new_empty(len(state), 0)
        return state, others[0][:, :1] if len(others) == 1 else th.stack([other[:, 0] for other in others], dim=1)

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """Next states (N, S), and the raw outputs of the other heads (N, E)."""
        output, others = self._heads(self._inputs(obs, actions))
        return self._next_obs(obs, output), others

    def losses(self, data: Transitions) -> dict[str, th.Tensor]:
        """Squared errors of state and reward (in scaled units where scaled), balanced cross-entropy of termination.

        DVPG, App. C: ``sum_j ||T(s_j, a_j) - s_{j+1}||^2 / n`` and ``sum_j (r(s_j, a_j) - r_j)^2 / n``; scaled targets
        are averaged over the state's dimensions, so that the loss does not grow with them.
        """
        output, others = self._heads(self._inputs(data.obs, data.actions))
        state_target, reward_target = self._targets(data)
        scale = 1 / self.obs_dim if self.normalize else 1.0
        losses = {"model_state_loss": _squared_error(output, state_target, data.weights, scale)}
        heads = others.unbind(1)  # its gradient is one stack, that of an index a block of zeros
        if self.learns_reward:
            losses["model_reward_loss"] = _squared_error(heads[0], reward_target, data.weights)
        if self.learns_termination:
            losses["model_done_loss"] = self._termination_loss(heads[-1], data)
        return losses


def _squared_error(output: th.Tensor, target: th.Tensor, weights: th.Tensor | None, scale: float = 1.0) -> th.Tensor:
    """``scale * ||output - target||^2``, averaged over the rows that count."""
    if weights is None:
        return squared_error(output, target, reduction="sum") * (scale / len(target))
    errors = squared_error(output, target, reduction="none")
    total = (errors if errors.dim() == 1 else errors.sum(1)) @ weights
    return total if scale == 1 else total * scale
