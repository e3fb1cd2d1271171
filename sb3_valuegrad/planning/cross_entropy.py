"""The cross-entropy method over action sequences. Tensors in, tensors out: it knows no network and no algorithm.

Sequences, or plans, are ``(H, N, A)``, time first, like a rollout's actions; K rivals for each of N are ``(K, H, N, A)``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch as th

from sb3_valuegrad.rollouts import Policy

# Rivals (K, H, N, A) to what each is worth, (K, N).
Score = Callable[[th.Tensor], th.Tensor]


def open_loop(plans: th.Tensor, policy: Policy) -> Policy:
    """Plans as a policy for one rollout: whatever the state, it takes the next step, and, once they are walked, it is
    ``policy``. With H steps in an H-step rollout this leaves ``policy`` the last action, which feeds the bootstrap.

    :param plans: (T, N, A); T = 0 is ``policy`` itself
    :param policy: who acts afterwards
    """
    steps = iter(plans.unbind())

    def act(obs: th.Tensor) -> th.Tensor | tuple[th.Tensor, th.Tensor]:
        action = next(steps, None)
        return policy(obs) if action is None else action

    return act


def best(plans: th.Tensor, scores: th.Tensor, count: int) -> th.Tensor:
    """The ``count`` best of K rivals, (count, H, N, A), best first.

    A score that is not finite comes last: where a model diverges it says nothing.

    :param plans: (K, H, N, A)
    :param scores: (K, N)
    """
    finite = scores.where(scores.isfinite(), -th.inf)
    # Sorted, not topk: of equals the first stays first, so that what stands for the policy wins a tie.
    ranks = finite.argsort(dim=0, descending=True, stable=True)[:count]
    return plans.gather(0, ranks[:, None, :, None].expand(-1, plans.shape[1], -1, plans.shape[3]))


def cross_entropy(
    score: Score,
    mean: th.Tensor,
    std: th.Tensor,
    n_samples: int,
    n_elites: int,
    n_iterations: int,
    min_std: float = 0.0,
    momentum: float = 0.0,
) -> tuple[th.Tensor, th.Tensor]:
    """Draw sequences around a mean, move mean and standard deviation to those of the best, and again (Rubinstein 1999;
    for planning: PETS, Chua et al. 2018, Alg. 1).

    :param score: what rivals (n_samples, H, N, A) are worth, (n_samples, N)
    :param mean: where the search begins, (H, N, A)
    :param std: how far around it, (H, N, A)
    :param n_samples: sequences drawn in an iteration, within [-1, 1]
    :param n_elites: how many of them are the best
    :param n_iterations: iterations
    :param min_std: below which no standard deviation falls
    :param momentum: share of mean and standard deviation that stays from the iteration before
    :return: mean and standard deviation after the last iteration, (H, N, A) each
    """
    std = std.clamp(min=min_std)
    for _ in range(n_iterations):
        plans = th.addcmul(mean, std, th.randn(n_samples, *mean.shape, dtype=mean.dtype, device=mean.device)).clamp_(-1, 1)
        new_std, new_mean = th.std_mean(best(plans, score(plans), n_elites), dim=0, correction=0)
        mean, std = new_mean.lerp(mean, momentum), new_std.lerp(std, momentum).clamp(min=min_std)
    return mean, std


@contextmanager
def seeded(seed: int, device: th.device) -> Iterator[None]:
    """Torch's global generators of the CPU and of ``device`` begin at a seed inside, and stand where they were afterwards.
    (``th.manual_seed`` would seed every other GPU, too, and for good.)"""
    gpus = [device] if device.type == "cuda" else []
    with th.random.fork_rng(devices=gpus):
        th.default_generator.manual_seed(seed)
        for gpu in gpus:
            with th.cuda.device(gpu):
                th.cuda.manual_seed(seed)
        yield
