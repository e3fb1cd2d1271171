"""A Gaussian world model with a network of its own for each dimension of the state."""

import torch as th
from torch import nn

from sb3_valuegrad.rollouts import renoise
from sb3_valuegrad.world_models.base import Step, Transitions
from sb3_valuegrad.world_models.gaussian import bounded, negative_log_likelihood, standard_deviation
from sb3_valuegrad.world_models.learned import LearnedWorldModel, OutcomeFunction, mean_over_rows
from sb3_valuegrad.world_models.networks import ParallelMlp

# A constant log-variance is a lone parameter, which Adam moves by no more than the learning rate a step; the networks are
# long fitted by then. In units of ten it follows them.
LOG_VAR_UNIT = 10.0


class PerDimensionGaussian(LearnedWorldModel):
    """``s'_i = s_i + mu_i(s, a) + sigma_i xi_i``, one network for each dimension i (SVG, sec. 5 and app. C).

    All networks are one batched matrix product a layer; reward and termination, where they are learned, have one each, too.
    Fitted by maximum likelihood, the reward by its squared error. Samples are differentiable in states and actions.

    :param obs_dim: S, length of a flat observation
    :param action_dim: A, number of actions
    :param net_arch: units of each hidden layer of each network; the paper's are 20/20 to 50/50 by task (Table 1)
    :param activation_fn: the paper's tanh is smooth, too
    :param normalize: scale inputs and targets by running statistics
    :param predict_change: the networks predict ``s' - s``; False: ``s'``
    :param weight_decay: L2 term, passed to the optimizer (AdamW decouples it, Adam does not)
    :param reward_fn: the known reward, see :class:`~sb3_valuegrad.world_models.MlpWorldModel`; None: learned
    :param termination: "learned", "none", or a known function
    :param noise: "constant": one learned sigma_i for all states, as in the paper; "learned": sigma_i(s, a)
    :param deterministic: predict the mean instead of a sample
    :raises ValueError: for an unknown ``noise`` or ``termination``, and for functions whose result has the wrong shape
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        net_arch: tuple[int, ...] | list[int] = (20, 20),
        activation_fn: type[nn.Module] = nn.Tanh,
        normalize: bool = True,
        predict_change: bool = True,
        weight_decay: float = 0.0,
        reward_fn: OutcomeFunction | None = None,
        termination: str | OutcomeFunction = "learned",
        noise: str = "constant",
        deterministic: bool = False,
    ):
        if noise not in ("constant", "learned"):
            raise ValueError(f'noise={noise!r}: use "constant" or "learned"')
        super().__init__(obs_dim, action_dim, normalize, predict_change, weight_decay, reward_fn, termination)
        self.deterministic = deterministic
        outputs = 2 if noise == "learned" else 1
        self.network = ParallelMlp(obs_dim + self.extra_heads, obs_dim + action_dim, outputs, net_arch, activation_fn)
        self.log_var = nn.Parameter(th.zeros(obs_dim)) if noise == "constant" else None

    def _heads(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Raw outputs: the state's mean (N, S), its log-variance (N, S) or (S,), and the other heads (N, E)."""
        first, *second = self.network(self._inputs(obs, actions)).unbind(2)
        mean, others = first.t().split([self.obs_dim, self.extra_heads], dim=1)
        log_var = second[0].t()[:, : self.obs_dim] if self.log_var is None else LOG_VAR_UNIT * self.log_var
        return mean, log_var, others

    def transition(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Next states (N, S), and the raw outputs of the other heads (N, E)."""
        mean, log_var, others = self._heads(obs, actions)
        if not self.deterministic:
            mean = th.addcmul(mean, standard_deviation(log_var), th.randn_like(mean))
        return self._next_obs(obs, mean), others

    def renoised(self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """The real next states (N, S) as samples: their gradient is that of mean and standard deviation."""
        mean, log_var, others = self._heads(obs, actions)
        return renoise(self._next_obs(obs, mean), self._state_std(log_var), next_obs), others

    def member_predictions(self, obs: th.Tensor, actions: th.Tensor) -> Step:
        """The model's expectation of all rows, without noise, with a first axis of 1."""
        mean, _, others = self._heads(obs, actions)
        return self._step(obs, actions, self._next_obs(obs, mean), others).of_one_member()

    def losses(self, data: Transitions) -> dict[str, th.Tensor]:
        """Negative log-likelihood of the state, averaged over its dimensions, and squared error of the reward, in scaled units
        where scaled; balanced cross-entropy of termination."""
        mean, log_var, others = self._heads(data.obs, data.actions)
        state, reward = self._targets(data)
        of_state = negative_log_likelihood(mean, bounded(log_var), state).mean(-1)
        losses = {"model_state_loss": mean_over_rows(of_state, data.weights)}
        heads = others.unbind(1)
        if self.learns_reward:
            losses["model_reward_loss"] = mean_over_rows((heads[0] - reward).square(), data.weights)
        if self.learns_termination:
            losses["model_done_loss"] = self._termination_loss(heads[-1], data)
        return losses
