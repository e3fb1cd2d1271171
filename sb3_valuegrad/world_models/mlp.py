"""Deterministic world model of multi-layer perceptrons."""

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_valuegrad.layers import run_layers, squared_error
from sb3_valuegrad.world_models.base import Transitions
from sb3_valuegrad.world_models.learned import LearnedWorldModel, OutcomeFunction


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
        self.share_network = share_network
        inputs, outputs = obs_dim + action_dim, obs_dim + (self.extra_heads if share_network else 0)
        self.network = nn.Sequential(*create_mlp(inputs, outputs, list(net_arch), activation_fn))
        # What else is learned, where it has networks of its own: reward, termination, in this order.
        self.head_networks = nn.ModuleList(
            nn.Sequential(*create_mlp(inputs, 1, list(net_arch), activation_fn))
            for _ in range(0 if share_network else self.extra_heads)
        )

    def _outputs(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """Raw outputs for the state (N, S) and of the other heads (N, E); None: these have networks of their own."""
        output = run_layers(self.network, inputs)
        if not self.share_network:
            return output, None
        # One split: its gradient is one concatenation, that of two slices two blocks of zeros and a sum.
        state, others = output.split([self.obs_dim, self.extra_heads], dim=1)
        return state, others

    def _own_heads(self, inputs: th.Tensor) -> th.Tensor:
        """Raw outputs of the heads that have networks of their own, (N, E)."""
        heads = [run_layers(network, inputs) for network in self.head_networks]
        return heads[0] if len(heads) == 1 else th.cat(heads, dim=1)

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor | None]:
        """Next states (N, S), and the raw outputs of the other heads (N, E); None: :meth:`outcome` evaluates their networks,
        for all steps of a rollout at once."""
        output, others = self._outputs(self._inputs(obs, actions))
        return self._next_obs(obs, output), others

    def outcome(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """Rewards (M,) and chances of termination (M,); None for these while no termination was seen."""
        if len(self.head_networks):
            hint = self._own_heads(self._inputs(obs, actions))
        return super().outcome(obs, actions, next_obs, hint)

    def losses(self, data: Transitions) -> dict[str, th.Tensor]:
        """Squared errors of state and reward (in scaled units where scaled), balanced cross-entropy of termination.

        DVPG, App. C: ``sum_j ||T(s_j, a_j) - s_{j+1}||^2 / n`` and ``sum_j (r(s_j, a_j) - r_j)^2 / n``; scaled targets
        are averaged over the state's dimensions, so that the loss does not grow with them.
        """
        inputs = self._inputs(data.obs, data.actions)
        output, others = self._outputs(inputs)
        state_target, reward_target = self._targets(data)
        scale = 1 / self.obs_dim if self.normalize else 1.0
        losses = {"model_state_loss": _squared_error(output, state_target, data.weights, scale)}
        if len(self.head_networks):
            others = self._own_heads(inputs)
        heads = () if others is None else others.unbind(1)  # its gradient is one stack, that of an index a block of zeros
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
