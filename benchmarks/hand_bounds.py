"""What returns on ``Hand-v0`` mean: of a hand at rest, and of a linear-quadratic controller that knows the physics.

    python benchmarks/hand_bounds.py

The controller minimises squared distances at the end, where the task has distances, and its actions are cut off at the bounds;
so it is no bound in the strict sense. Prints mean and standard deviation over episodes.
"""

from collections.abc import Callable

import numpy as np

from sb3_valuegrad.envs.hand import FINAL_WEIGHT, MASS, REST, SEEN, STEPS, STIFFNESS, TARGETS, TIME_STEP, HandEnv

EPISODES = 50
ACTION_COST = 1e-2  # for each step; small beside the final distances
Policy = Callable[[np.ndarray, int], np.ndarray]


def one_axis() -> tuple[np.ndarray, np.ndarray]:
    """Dynamics of (hand, ball from its rest, ball's velocity, 1) along one axis, and of the hand's velocity."""
    spring = TIME_STEP * STIFFNESS / MASS
    velocity = np.array([spring, -spring, 1.0, 0.0])
    states = np.stack([np.eye(4)[0], np.eye(4)[1] + TIME_STEP * velocity, velocity, np.eye(4)[3]])
    return states, np.array([[TIME_STEP], [0.0], [0.0], [0.0]])


def gains(target: float) -> list[np.ndarray]:
    """The finite-horizon Riccati recursion, by time: ``a_t = -K_t s_t``, (1, 4) each."""
    states, actions = one_axis()
    at_the_end = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, -target]])
    value, found = -FINAL_WEIGHT * at_the_end.T @ at_the_end, []
    for _ in range(STEPS):
        gain = np.linalg.solve(ACTION_COST + actions.T @ value @ actions, actions.T @ value @ states)
        value = states.T @ value @ (states - actions @ gain)
        found.append(gain)
    return found[::-1]


def controller() -> Policy:
    by_target = {offset: gains(offset) for offset in {0.0, *(TARGETS - REST)[:, 0].round(6)}}

    def act(obs: np.ndarray, time: int) -> np.ndarray:
        hand, ball, velocity = (obs[part].astype(float) for part in (SEEN.hand, SEEN.ball, SEEN.ball_velocity))
        offsets = (obs[SEEN.target] - REST).round(6)
        states = np.stack([hand, ball - REST, velocity, np.ones(2)])
        actions = [(-by_target[float(offset)][time] @ state).item() for offset, state in zip(offsets, states.T, strict=True)]
        return np.clip(actions, -1, 1)

    return act


def at_rest(obs: np.ndarray, time: int) -> np.ndarray:
    return np.zeros(2)


def returns(policy: Policy) -> list[float]:
    env, found = HandEnv(), []
    for episode in range(EPISODES):
        obs, _ = env.reset(seed=episode)
        total = 0.0
        for time in range(STEPS):
            obs, reward, *_ = env.step(policy(obs, time))
            total += reward
        found.append(total)
    return found


def main() -> None:
    for name, policy in (("at rest", at_rest), ("linear-quadratic controller", controller())):
        found = returns(policy)
        print(f"{name}: {np.mean(found):.1f} +- {np.std(found):.1f}, seeds 0 to {EPISODES - 1}")


if __name__ == "__main__":
    main()
