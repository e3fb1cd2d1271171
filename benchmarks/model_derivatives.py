"""How good are the derivatives that a value gradient takes from the model? On HalfCheetah-v5, against the simulator.

    python benchmarks/model_derivatives.py halfcheetah-paper "DVPG" --seeds 0 1 2
    python benchmarks/model_derivatives.py halfcheetah "DVPG" --seeds 0

Trains a system of a study for ``--steps`` steps, then compares, at states of its replay buffer and the policy's actions,
d s'/d a and d r/d a of the model with central differences of MuJoCo; and the derivative of J_1 in the action, with the
model's derivatives and with the simulator's under the same critic. Appends to ``results/model_derivatives.csv``.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from learning import append, revision, versions
from studies import make_model, studies

RESULTS = Path(__file__).parent / "results" / "model_derivatives.csv"
FIELDS = ["study", "system", "seed", "steps", "state_jacobian_error", "state_jacobian_cosine", "reward_gradient_error",
          "J1_over_J0", "J1_cosine_with_true", "J1_cosine_with_J0", "versions"]  # fmt: skip


def simulate(env: Any, obs: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The simulator's next observation and reward, (S + 1,), from an observation and an action in [-1, 1]."""
    base = env.unwrapped
    base.set_state(np.concatenate([[0.0], obs[: base.model.nq - 1]]), obs[base.model.nq - 1 :])
    next_obs, reward, *_ = base.step(action)
    return np.append(next_obs, reward)


def true_jacobian(env: Any, obs: np.ndarray, action: np.ndarray, step: float = 1e-3) -> np.ndarray:
    """d (s', r) / d a by central differences, (S + 1, A)."""
    columns = []
    for index in range(len(action)):
        change = np.zeros_like(action)
        change[index] = step
        columns.append((simulate(env, obs, action + change) - simulate(env, obs, action - change)) / (2 * step))
    return np.stack(columns, axis=1)


def model_jacobian(agent: Any, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """d (s', r) / d a of the world model, (N, S + 1, A)."""

    def outputs(action: th.Tensor) -> th.Tensor:
        step = agent.world_model.step(obs, action)
        return th.cat([step.next_obs, step.reward[:, None]], dim=1).sum(0)

    return th.autograd.functional.jacobian(outputs, actions).transpose(0, 1)  # type: ignore[no-any-return]


def gradients(agent: Any, jacobian: th.Tensor, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """d J_0 / d a, and d J_1 / d a with these derivatives of s' and r under the agent's critic and policy: (N, A)."""
    action = actions.clone().requires_grad_()
    (of_value,) = th.autograd.grad(agent.critic.q1(obs, action).sum(), action)
    next_obs = agent.world_model.step(obs, actions).next_obs.detach().requires_grad_()
    (of_state,) = th.autograd.grad(agent.critic.q1(next_obs, agent._frozen_policy(next_obs)).sum(), next_obs)
    through = jacobian[:, -1] + agent.gamma * (of_state[:, None] @ jacobian[:, :-1])[:, 0]
    return of_value, through


def cosine(left: th.Tensor, right: th.Tensor) -> float:
    return th.nn.functional.cosine_similarity(left.flatten(1), right.flatten(1), dim=1).mean().item()


def measure(study_name: str, system: str, seed: int, steps: int, rows: int = 200) -> list[Any]:
    study = studies()[study_name]
    agent: Any = make_model(study, system, seed)
    agent.learn(steps, log_interval=None)
    batch = agent.replay_buffer.sample(rows)
    env = agent.env.envs[0].unwrapped
    obs, actions = batch.observations, agent.actor(batch.observations).detach().clamp(-0.99, 0.99)
    pairs = zip(obs.double().numpy(), actions.double().numpy(), strict=True)
    true = th.as_tensor(np.stack([true_jacobian(env, s, a) for s, a in pairs]), dtype=th.float32)
    learned = model_jacobian(agent, obs, actions)
    # Each dimension on the scale of its real derivatives.
    scale = true.square().mean((0, 2), keepdim=True).sqrt()
    error = ((learned - true) / scale).square().mean((0, 2)).sqrt()
    j0, j1 = gradients(agent, learned, obs, actions)
    _, j1_true = gradients(agent, true, obs, actions)
    numbers = [error[:-1].mean().item(), cosine((learned / scale)[:, :-1], (true / scale)[:, :-1]), error[-1].item(),
               (j1.norm(dim=1).median() / j0.norm(dim=1).median()).item(), cosine(j1, j1_true), cosine(j1, j0)]  # fmt: skip
    return [study_name, system, seed, steps, *(round(number, 3) for number in numbers), f"{versions()} {revision()}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("system")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=20_000)
    args = parser.parse_args()
    th.set_num_threads(1)
    if not RESULTS.exists():
        with RESULTS.open("w", newline="") as file:
            csv.writer(file).writerow(FIELDS)
    for seed in args.seeds:
        row = measure(args.study, args.system, seed, args.steps)
        append(RESULTS, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
