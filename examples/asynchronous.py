"""MPG with a prior model of the pendulum, learned asynchronously on Ray; then a little more of it synchronously.

    pip install 'sb3-valuegrad[ray,mujoco]'
    python examples/asynchronous.py --learners 2
    python examples/asynchronous.py --learners 8 --address HEAD:6379   # a cluster that this machine belongs to

What a cluster needs: docs/distributed.md.
"""

import argparse
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_valuegrad.envs  # noqa: F401 (registers the task)
from sb3_valuegrad import MPG
from sb3_valuegrad.distributed import learn

PRIOR: dict[str, Any] = dict(
    transition_fn="sb3_valuegrad.envs.priors:pendulum_step", reward_fn="sb3_valuegrad.envs.priors:pendulum_reward"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", type=int, default=2)
    parser.add_argument("--updates-per-task", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--address", help="host:port of a Ray cluster's head; otherwise this machine alone")
    arguments = parser.parse_args()
    th.set_num_threads(1)

    policy_kwargs = dict(net_arch=[64, 64], world_model_class="analytic", world_model_kwargs=PRIOR)
    model = MPG("MlpPolicy", "InvertedPendulumExplicit-v5", horizons=(0, 10), weighting_updates=arguments.steps,
                learning_starts=500, policy_kwargs=policy_kwargs, seed=arguments.seed, device="cpu", verbose=1)  # fmt: skip
    learn(model, arguments.steps, log_interval=20, n_learners=arguments.learners, address=arguments.address,
          updates_per_task=arguments.updates_per_task, eval_freq=1000)  # fmt: skip
    test = gym.make("InvertedPendulumExplicit-v5")
    print(f"return after {model.num_timesteps} steps and {model._n_updates} updates: {evaluate_policy(model, test)[0]:.2f}")

    model.save("mpg_asynchronous")
    model = MPG.load("mpg_asynchronous", env=model.get_env(), device="cpu")
    model.learn(500)
    print(f"return after 500 steps more, synchronous: {evaluate_policy(model, test)[0]:.2f}")


if __name__ == "__main__":
    main()
