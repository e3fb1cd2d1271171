"""Deterministic world model of multi-layer perceptrons."""

from collections.abc import Callable

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn
from torch.nn import functional as F

from sb3_valuegrad.world_models.base import Transitions, WorldModel
from sb3_valuegrad.world_models.networks import ParallelMlp
from sb3_valuegrad.world_models.scaling import RunningScaler

OutcomeFunction = Callable[[th.Tensor, th.Tensor, th.Tensor], th.Tensor]


class MlpWorldModel(WorldModel):
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

    seen_dones: th.Tensor
    seen_rows: th.Tensor

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
        super().__init__(obs_dim, action_dim)
        if isinstance(termination, str) and termination not in ("learned", "none"):
            raise ValueError(f'termination={termination!r}: use "learned", "none" or a torch function')
        self.normalize, self.predict_change, self.weight_decay = normalize, predict_change, weight_decay
        self.reward_fn = self._checked("reward_fn", reward_fn)
        self.termination_fn = None if isinstance(termination, str) else self._checked("termination", termination)
        self.learns_reward = reward_fn is None
        self.learns_termination = termination == "learned"
        extra_heads = int(self.learns_reward) + int(self.learns_termination)
        self.share_network = share_network
        self.network: nn.Module
        if share_network:
            self.network = nn.Sequential(
                *create_mlp(obs_dim + action_dim, obs_dim + extra_heads, list(net_arch), activation_fn)
            )
        else:
            # Of the reward's and the termination's networks only the first output counts.
            self.network = ParallelMlp(1 + extra_heads, obs_dim + action_dim, obs_dim, net_arch, activation_fn)
        if normalize:
            self.input_scaler = RunningScaler(obs_dim + action_dim)
            self.state_scaler = RunningScaler(obs_dim)
            self.reward_scaler = RunningScaler(1)
        # Counts of terminations and rows seen, as floats.
        self.register_buffer("seen_dones", th.zeros(()))
        self.register_buffer("seen_rows", th.zeros(()))

    def _checked(self, name: str, function: OutcomeFunction | None) -> OutcomeFunction | None:
        """Try a given function on three rows before anything is trained with it."""
        if function is None:
            return None
        rows = 3
        with th.no_grad():
            result = function(th.zeros(rows, self.obs_dim), th.zeros(rows, self.action_dim), th.zeros(rows, self.obs_dim))
        shape = tuple(result.shape) if isinstance(result, th.Tensor) else type(result).__name__
        if shape != (rows,):
            raise ValueError(
                f"{name}={function!r}: for obs ({rows}, {self.obs_dim}), actions ({rows}, {self.action_dim}) and next_obs "
                f"({rows}, {self.obs_dim}) it must return a tensor of shape ({rows},), one value a row, but gave {shape}"
            )
        if not th.isfinite(result).all():
            raise ValueError(f"{name}={function!r} returned {result.tolist()} for zeros; it must be finite everywhere")
        return function

    def _inputs(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        inputs = th.cat([obs, actions], dim=1)
        return self.input_scaler.scale(inputs) if self.normalize else inputs

    def _heads(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Raw outputs: for the state (N, S), and for what else is learned (reward, termination, in this order) (N, E)."""
        output = self.network(inputs)
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
        if self.normalize:
            output = self.state_scaler.unscale(output)
        return obs + output if self.predict_change else output, others

    def outcome(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, hint: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """Rewards (M,) and chances of termination (M,)."""
        heads = () if hint is None else hint.unbind(1)
        if self.reward_fn is not None:
            rewards = self.reward_fn(obs, actions, next_obs)
        elif self.normalize:
            rewards = self.reward_scaler.unscale(heads[0])
        else:
            rewards = heads[0]
        if self.termination_fn is not None:
            return rewards, self.termination_fn(obs, actions, next_obs).to(rewards.dtype)
        return rewards, self._termination(heads[-1]) if self.learns_termination else None

    def _termination(self, logits: th.Tensor) -> th.Tensor:
        """The chance of termination. The loss balances the classes, so the log-odds are shifted back to the rate that
        was seen; before any was seen the chance is zero, not half."""
        of_done, of_alive = self._class_weights()
        return th.sigmoid(logits - (of_done / of_alive).log()) * (self.seen_dones > 0)

    def _class_weights(self) -> tuple[th.Tensor, th.Tensor]:
        """Weights in the loss of a terminating row and of another one: equal in sum, up to a factor of 200 a row."""
        rate = (self.seen_dones / self.seen_rows.clamp(min=1)).clamp(0.0025, 0.9975)
        return 0.5 / rate, 0.5 / (1 - rate)

    def observe(self, data: Transitions) -> None:
        """Running scales, and the rate of terminations."""
        if self.normalize:
            self.input_scaler.update(th.cat([data.obs, data.actions], dim=1))
            self.state_scaler.update(self._state_target(data))
            self.reward_scaler.update(data.rewards[:, None])
        if self.learns_termination:
            self.seen_dones += data.dones.sum()
            self.seen_rows += len(data.dones)

    def _state_target(self, data: Transitions) -> th.Tensor:
        return data.next_obs - data.obs if self.predict_change else data.next_obs

    def losses(self, data: Transitions) -> dict[str, th.Tensor]:
        """Squared errors of state and reward (in scaled units where scaled), balanced cross-entropy of termination.

        DVPG, App. C: ``sum_j ||T(s_j, a_j) - s_{j+1}||^2 / n`` and ``sum_j (r(s_j, a_j) - r_j)^2 / n``; scaled targets
        are averaged over the state's dimensions, so that the loss does not grow with them.
        """
        output, others = self._heads(self._inputs(data.obs, data.actions))
        state_target, reward_target = self._state_target(data), data.rewards
        if self.normalize:
            state_target = self.state_scaler.scale(state_target)
            reward_target = self.reward_scaler.scale(reward_target)
        scale = 1 / self.obs_dim if self.normalize else 1.0
        losses = {"model_state_loss": _squared_error(output, state_target, data.weights, scale)}
        if self.learns_reward:
            losses["model_reward_loss"] = _squared_error(others[:, 0], reward_target, data.weights)
        if self.learns_termination:
            losses["model_done_loss"] = self._termination_loss(others[:, -1], data)
        return losses

    def _termination_loss(self, logits: th.Tensor, data: Transitions) -> th.Tensor:
        """Cross-entropy in which both classes weigh the same over the data seen; zero while no termination was seen."""
        of_done, of_alive = self._class_weights()
        balance = th.where(data.dones > 0, of_done, of_alive)
        loss = F.binary_cross_entropy_with_logits(logits, data.dones, reduction="none") * balance
        loss = loss.mean() if data.weights is None else loss @ data.weights
        return loss * (self.seen_dones > 0)

    def parameter_groups(self) -> list[dict[str, object]]:
        """One group; the L2 term is the optimizer's weight decay."""
        group: dict[str, object] = {"params": list(self.parameters())}
        if self.weight_decay:
            group["weight_decay"] = self.weight_decay
        return [group]


def _squared_error(output: th.Tensor, target: th.Tensor, weights: th.Tensor | None, scale: float = 1.0) -> th.Tensor:
    """``scale * ||output - target||^2``, averaged over the rows that count."""
    if weights is None:
        return F.mse_loss(output, target, reduction="sum") * (scale / len(target))
    errors = F.mse_loss(output, target, reduction="none")
    return (errors if errors.dim() == 1 else errors.sum(1)) @ weights * scale
