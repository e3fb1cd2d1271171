"""How good a world model's networks are on data that they were not fitted to."""

import torch as th

from sb3_valuegrad.world_models.base import Transitions, WorldModel
from sb3_valuegrad.world_models.scaling import RunningScaler

# Errors below a thousandth of the targets' standard deviation count no further.
FLOOR = 1e-6


class HeldOutError:
    """A network's error: the share of the targets' variance that it leaves unexplained, geometric mean over the targets.

    The targets are the change of each state dimension, the reward and the termination, the latter if any was held out.
    Squared errors, not likelihoods: value gradients pass through the means, and one surprising row of small variance
    would decide a likelihood. And a geometric mean, since a target that is all noise would hide the others' progress in
    an arithmetic one; with it 1% is 1% whatever the scales (it is the likelihood of errors of constant size).

    :param data: what the variances are of
    :param validation: what the errors are of
    """

    def __init__(self, data: Transitions, validation: Transitions):
        self.parts = _split(validation, 1024)
        self.rows = len(validation.obs)
        targets = th.cat([data.next_obs - data.obs, data.rewards[:, None], data.dones[:, None]], dim=1)
        scale = RunningScaler(targets.shape[1]).to(targets)
        scale.refresh(targets)
        self.variances, self.counts = scale.std.square(), scale.spread > 0
        self.counts[-1] &= validation.dones.any()
        if not self.counts.any():
            self.counts[:] = True

    @th.no_grad()
    def __call__(self, model: WorldModel) -> th.Tensor:
        """:return: (n_members,)"""
        total = sum(self._squared(model, part) for part in self.parts)
        unexplained = (total / self.rows / self.variances)[:, self.counts]
        return (unexplained + FLOOR).log().mean(1).exp()

    @staticmethod
    def _squared(model: WorldModel, part: Transitions) -> th.Tensor:
        next_obs, reward, done = model.member_predictions(part.obs, part.actions)
        errors = [next_obs - part.next_obs, (reward - part.rewards)[..., None], (done - part.dones)[..., None]]
        return th.cat(errors, dim=2).square().sum(1)


def _split(data: Transitions, size: int) -> list[Transitions]:
    return [Transitions(*parts) for parts in zip(*(part.split(size) for part in data[:5]), strict=True)]
