"""How many updates the experience so far calls for: as many as SB3's ``learn()`` would have made of it."""

from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm


class Pace:
    """Keeps the ratio of updates to steps that ``train_freq`` and ``gradient_steps`` ask for.

    :param model: before its first step
    """

    def __init__(self, model: ValueGradientAlgorithm):
        assert isinstance(model.train_freq, TrainFreq)
        self.start: int = model.num_timesteps
        self.learning_starts: int = model.learning_starts
        self.gradient_steps: int = model.gradient_steps
        self.frequency: int = model.train_freq.frequency
        self.by_episode: bool = model.train_freq.unit == TrainFrequencyUnit.EPISODE
        if not self.by_episode:
            self.frequency *= model.n_envs
        self.episodes: int = 0

    @property
    def at_once(self) -> int:
        """Updates in one ``train()``; 1 where episodes decide."""
        if self.gradient_steps >= 0:
            return max(self.gradient_steps, 1)
        return 1 if self.by_episode else self.frequency

    def count_episode(self, timesteps: int) -> None:
        """One has ended."""
        self.episodes += timesteps > self.learning_starts

    def due(self, timesteps: int) -> int:
        """Updates since the start, when so many steps have been made."""
        if self.by_episode and self.gradient_steps >= 0:
            return self.gradient_steps * (self.episodes // self.frequency)
        if self.by_episode:
            return max(timesteps - max(self.learning_starts, self.start), 0)
        without = max(self.learning_starts - self.start, 0) // self.frequency
        return self.at_once * max((timesteps - self.start) // self.frequency - without, 0) if self.gradient_steps else 0
