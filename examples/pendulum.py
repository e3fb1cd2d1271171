"""DVG(5) swings a pendulum up, in about a minute on one core; then look at what it learned and what its model believes.

    python examples/pendulum.py

Prints the evaluation return every 500 steps (untrained: below -1000; above -200: solved) and writes logs/pendulum.png.
"""

from pathlib import Path

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_valuegrad import DVG

PICTURE = Path("logs/pendulum.png")
STEPS, EVAL_FREQ = 3000, 500


def train(model: DVG) -> dict[int, float]:
    """Learn and evaluate in turns.

    :return: mean return of ten episodes, by environment step
    """
    eval_env = Monitor(gym.make("Pendulum-v1"))
    returns = {}
    for step in range(EVAL_FREQ, STEPS + 1, EVAL_FREQ):
        model.learn(EVAL_FREQ, reset_num_timesteps=False)
        eval_env.reset(seed=0)
        mean, _ = evaluate_policy(model, eval_env, n_eval_episodes=10)
        returns[step] = float(np.mean(mean))
        print(f"step {step}: return {returns[step]:.0f}", flush=True)
    return returns


def predict_open_loop(model: DVG, steps: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """A real swing-up, and the model's prediction of it from the first state and the actions alone.

    :return: real and predicted observations (cos, sin, velocity), each (steps + 1, 3)
    """
    env = gym.make("Pendulum-v1")
    # This seed starts with the pendulum hanging.
    obs = env.reset(seed=4)[0]
    real, predicted = [obs], [th.as_tensor(obs)[None]]
    for _ in range(steps):
        action, _ = model.predict(real[-1], deterministic=True)
        real.append(env.step(action)[0])
        # The world model takes actions in [-1, 1], as the policy emits them; the environment's are torques in [-2, 2].
        scaled = th.as_tensor(model.policy.scale_action(action))[None]
        with th.no_grad():
            predicted.append(model.world_model.step(predicted[-1], scaled).next_obs)
    return np.stack(real), th.cat(predicted).numpy()


def draw(returns: dict[int, float], real: np.ndarray, predicted: np.ndarray) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    left.plot(list(returns), list(returns.values()), marker="o")
    left.set(xlabel="environment steps", ylabel="return, mean of 10 episodes", title="DVG(5) on Pendulum-v1")
    for index, name in enumerate(["cos of the angle", "sin of the angle", "velocity / 8"]):
        scale = 8 if index == 2 else 1
        right.plot(real[:, index] / scale, color=f"C{index}", label=name)
        right.plot(predicted[:, index] / scale, color=f"C{index}", linestyle="--")
    right.set(xlabel="steps from the start", title="A swing-up (line) and the model's prediction (dashes)")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    th.set_num_threads(1)
    model = DVG("MlpPolicy", "Pendulum-v1", horizon=5, seed=0, device="cpu")
    returns = train(model)
    errors = model.model_errors()
    if errors:
        print("model error on held-out data:", {name: round(value, 4) for name, value in errors.items()})
    draw(returns, *predict_open_loop(model))
    print(f"Learning curve and model prediction: {PICTURE}")


if __name__ == "__main__":
    main()
