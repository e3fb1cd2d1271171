"""The learning studies: which systems, which task, how many steps and seeds. ``learning.py`` runs them."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import LinearSchedule

import sb3_valuegrad.envs


@dataclass
class Study:
    """
    :param env: Gymnasium id
    :param steps: environment steps of each run
    :param eval_freq: environment steps between two evaluations
    :param systems: name in the results -> (algorithm, its keyword arguments); ``noise`` is the standard deviation
        of Gaussian action noise
    :param seeds: seeds of the training runs
    :param eval_episodes: episodes of one evaluation, the same starts each time
    :param eval_env_kwargs: what the environment of the evaluations is made with
    :param stop: end each run after so many steps, schedules as for all of ``steps``; None: at the end
    :param n_envs: environments side by side (a native vector environment); a step is one of all of them
    :param errors: what -> its column in the observation; root mean squares over an evaluation's states are kept, too
    """

    env: str
    steps: int
    eval_freq: int
    systems: dict[str, tuple[str, dict[str, Any]]]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    eval_episodes: int = 5
    eval_env_kwargs: dict[str, Any] = field(default_factory=dict)
    stop: int | None = None
    n_envs: int = 1
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def last_evaluation(self) -> int:
        """The step of a run's last evaluation."""
        return (self.stop or self.steps) // self.eval_freq * self.eval_freq


# SB3's own algorithms, everything at its default except what the name says.
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "TD3": ("TD3", {}),
    "SAC": ("SAC", {}),
    "DDPG": ("DDPG", {"noise": 0.1}),
}


def zoo(algorithm: str, env: str, preset: str = "", **changes: Any) -> tuple[str, dict[str, Any]]:
    """One of our algorithms with what ``hyperparams/`` says for the task.

    :param preset: "paper/" for the paper's settings
    """
    from sb3_valuegrad.zoo.manager import hyperparams_file, make_schedules, read_entry

    entry = read_entry(hyperparams_file(preset + algorithm.lower()), env)
    make_schedules(entry)
    kwargs = {key: value for key, value in entry.items() if key not in ("n_timesteps", "policy")}
    return algorithm, {**kwargs, **changes}


def paper(env: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """The paper's DVPG, DVG and DDPG: the same networks, noise, learning rates and seeds. And its DVPG with one thing
    changed: the model's inputs and targets are on unit scale, and it predicts the change of the state."""
    algorithm, scaled = zoo("DVPG", env, "paper/")
    model = {**scaled["policy_kwargs"]["world_model_kwargs"], "normalize": True, "predict_change": True, "weight_decay": 0.0}
    scaled = {**scaled, "policy_kwargs": {**scaled["policy_kwargs"], "world_model_kwargs": model}}
    return {
        "DVPG": zoo("DVPG", env, "paper/"),
        "DVG": zoo("DVG", env, "paper/"),
        "DDPG (horizon 0)": zoo("DVG", env, "paper/", horizon=0),
        "DVPG (scaled model)": (algorithm, scaled),
    }


def in_authors_units() -> dict[str, tuple[str, dict[str, Any]]]:
    """Table I's algorithms as the authors' code has them: its units, and learning rates that are a tenth of Table VI's."""
    from authors_units import ENV, PRIOR

    rates = {"learning_rate": LinearSchedule(3e-5, 3e-6, 1.0), "qf_learning_rate": LinearSchedule(8e-5, 8e-6, 1.0)}
    systems = mixed_policy_gradient("PathTracking-v0", **rates)
    for _, kwargs in systems.values():
        kwargs["policy_kwargs"] = {**kwargs["policy_kwargs"], "world_model_kwargs": PRIOR}
        if "simulator_kwargs" in kwargs["policy_kwargs"]:
            kwargs["policy_kwargs"]["simulator_kwargs"] = {"env_id": ENV}
    return systems


def mixed_policy_gradient(env: str, **rates: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    """The six algorithms of the MPG paper's Table I with equal networks, rates and buffer (Table VI). TD3 and SAC are ours
    without a horizon, which are SB3's with a learning rate for the critic alone. n-step targets are from the replay buffer;
    "on-policy", the simulator's under the current policy, as all n-step algorithms of the paper have them.

    :param rates: learning rates in the place of Table VI's
    """
    _, mpg = zoo("MPG", env, "paper/", **rates)
    shared = {key: mpg[key] for key in mpg.keys() - {"horizons", "eta", "weighting_updates", "min_weight"}}
    policy_kwargs = mpg["policy_kwargs"]
    one = {**policy_kwargs, "n_critics": 1}
    one_critic = {"n_steps": 25, "policy_kwargs": one}
    simulated = {**one, "simulator_class": "oracle", "simulator_kwargs": {"env_id": env}}
    on_policy = {"target_estimator": "mve", "target_horizon": 24, "batch_reuse": 10, "policy_kwargs": simulated}
    of_sac = {key: shared[key] for key in shared.keys() - {"target_policy_noise", "policy_delay", "action_noise"}}
    plain_sac = {"target_estimator": "td", "target_horizon": 0, "real_ratio": 1.0, "model_fit_freq": None}
    return {
        "MPG-v1": ("MPG", {**mpg, **one_critic}),
        "MPG-v1, on-policy": ("MPG", {**mpg, **on_policy}),
        "MPG-v2": ("MPG", mpg),
        "MPG-v2, measured weights": ("MPG", {**mpg, "weighting": "variance"}),
        "n-step DPG": ("DVG", {**shared, **one_critic, "horizon": 0}),
        "n-step DPG, on-policy": ("DVG", {**shared, **on_policy, "horizon": 0}),
        "n-step ADP": ("DVG", {**shared, **one_critic, "horizon": 25, "gradient_path": "all-actions"}),
        "n-step ADP, on-policy": ("DVG", {**shared, **on_policy, "horizon": 25, "gradient_path": "all-actions"}),
        "TD3": ("DVG", {**shared, "horizon": 0, "target_policy_noise": 0.1}),
        # What the n-step algorithms lack beside it: the second critic, or its one-step targets?
        "TD3, one critic": ("DVG", {**shared, "horizon": 0, "target_policy_noise": 0.1, "policy_kwargs": one}),
        "MPG-v1, on-policy, two critics": ("MPG", {**mpg, **on_policy, "policy_kwargs": {**simulated, "n_critics": 2}}),
        "SAC": ("MAAC", {**of_sac, **plain_sac, "horizon": 0, "ent_coef": 0.03}),
    }


def with_prior(env: str, weighting: str) -> tuple[str, dict[str, Any]]:
    """MPG on Pendulum with a prior model that is somewhat wrong."""
    from pendulum_prior import PRIOR

    _, kwargs = zoo("MPG", env)
    policy_kwargs = {"net_arch": [64, 64], "world_model_class": "analytic", "world_model_kwargs": PRIOR}
    rule = {"horizons": (0, 25), "eta": 0.1, "weighting_updates": 2000, "weighting": weighting}
    return "MPG", {**kwargs, **rule, "gradient_steps": 1, "policy_kwargs": policy_kwargs}


def ensembles(env: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """What learns with imagined steps, as ``hyperparams/`` has it, and the model-free algorithms as they ship."""
    return {
        **{name: zoo(name, env) for name in ("MAAC", "MVE", "MBPO")},
        **{name: (name, {}) for name in ("SAC", "TQC", "CrossQ")},
    }


def maac_ablations(env: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """MAAC with one part less (Clavera et al. 2020, Figs. 4 and 5), and with the paper's numbers where ours differ."""
    return {
        "MAAC": zoo("MAAC", env),
        "H = 0 (STEVE-SAC)": zoo("MAAC", env, horizon=0),
        "no STEVE": zoo("MAAC", env, target_estimator="td", target_horizon=0),
        "five samples": zoo("MAAC", env, n_samples=5),
        "real data only": zoo("MAAC", env, real_ratio=1.0),
        "5% real data": zoo("MAAC", env, real_ratio=0.05),
        "no entropy": zoo("MAAC", env, ent_coef=0.0),
    }


def mve_versions(env: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """MVE with and without TD-k, with the learned model and with the simulator itself, and DDPG: the same settings
    (Feinberg et al. 2018, Figs. 3, 4 and 6). Networks, rates and noise are the package's defaults, not the paper's."""
    oracle = dict(world_model_class="oracle", world_model_kwargs=dict(env_id=env))
    # A short horizon and small minibatches, because every imagined step is one of MuJoCo's.
    common = dict(horizon=3, batch_size=128)
    return {
        "MVE": zoo("MVE", env, **common),
        "MVE without TD-k": zoo("MVE", env, **common, td_k=False),
        "MVE with the oracle": zoo("MVE", env, **common, policy_kwargs=oracle),
        "MVE with the oracle, without TD-k": zoo("MVE", env, **common, td_k=False, policy_kwargs=oracle),
        "DDPG (H = 0)": zoo("MVE", env, **{**common, "horizon": 0}),
    }


def svg_hand() -> dict[str, tuple[str, dict[str, Any]]]:
    """SVG(inf) and its planner on the hand and the ball (Heess et al. 2015, Fig. 2 left): the paper's networks (Table 1) and
    discount (app. D); rates, noise and numbers of updates are ours, which the paper does not print. With the package's scaled
    model, and with one whose inputs and targets are as they come, of which the paper says nothing else."""
    import torch as th

    from sb3_valuegrad.envs.hand import hand_is_over, hand_reward

    known = {"net_arch": [20, 20], "reward_fn": hand_reward, "termination": hand_is_over}
    networks = {"net_arch": [100, 100], "activation_fn": th.nn.Tanh, "world_model_class": "per-dimension", "noise_std": 0.2}
    settings = {
        "horizon": None,
        "policy_replay": False,
        "gamma": 1.0,
        "learning_rate": LinearSchedule(3e-3, 0.0, 1.0),
        "learning_starts": 5_000,
        "train_freq": (1, "episode"),
        "gradient_steps": 100,
        "buffer_size": 300_000,
    }
    return {
        f"{name}{kind}": (
            "SVG",
            {**settings, "trajectories": way, "policy_kwargs": {**networks, "world_model_kwargs": {**known, **model}}},
        )
        for kind, model in (("", {}), (", unscaled model", {"normalize": False}))
        for name, way in (("SVG(inf)", "real"), ("planner", "imagined"))
    }


def svg_pendulum(env: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """SVG(1)-ER as ``hyperparams/`` has it, with a policy that is squashed, and SB3's SAC."""
    algorithm, plain = zoo("SVG", env)
    squashed = {**plain, "policy_kwargs": {**plain["policy_kwargs"], "squash": True}}
    return {"SVG(1)-ER": (algorithm, plain), "SVG(1)-ER, squashed": (algorithm, squashed), "SAC": BASELINES["SAC"]}


def svg_cheetah() -> dict[str, tuple[str, dict[str, Any]]]:
    """SVG(1)-ER beside what climbs through a model off-policy, and without one; with one thing changed; and with our first
    defaults, which never wait, either, and step ten times as far under less noise."""
    never_waiting = {"policy_window": None, "min_overlap": 0.0}
    first = {**never_waiting, "learning_rate": 3e-4, "policy_kwargs": {"noise_std": 0.3}}
    return {
        "SVG(1)-ER": ("SVG", {}),
        "SVG(1)-ER, never waiting": ("SVG", never_waiting),
        "SVG(1)-ER, first defaults": ("SVG", first),
        "SVG(1)-ER, plain policy": ("SVG", {"policy_kwargs": {"squash": False}}),
        "DVPG(3, 0.5)": ("DVPG", {"horizon": 3, "lambda_": 0.5}),
        "DDPG": BASELINES["DDPG"],
    }


def with_known_reward(
    env: str, reward_fn: Any, net_arch: list[int], noise_std: float = 0.5, **changes: Any
) -> tuple[str, dict[str, Any]]:
    """SVG as ``hyperparams/`` has it for a task, with the reward that the paper knows.

    :param net_arch: of the model of each dimension of the state
    :param noise_std: of the policy
    """
    _, kwargs = zoo("SVG", env)
    policy_kwargs = {**kwargs["policy_kwargs"], "noise_std": noise_std}
    model = {**policy_kwargs["world_model_kwargs"], "reward_fn": reward_fn, "net_arch": net_arch}
    return "SVG", {**kwargs, "policy_kwargs": {**policy_kwargs, "world_model_kwargs": model}, **changes}


def svg_tasks() -> dict[str, Study]:
    """Heess et al. 2015, Fig. 2 (middle) and Fig. 3 (middle), on our versions of the tasks."""
    from sb3_valuegrad.envs.cart_pole import cart_pole_reward
    from sb3_valuegrad.envs.swimmer import swimmer_reward

    cart, swimmer = "CartPoleSwingUp-v0", "Swimmer3-v0"
    svg = partial(with_known_reward, cart, cart_pole_reward, [20, 20])
    _, shared = svg()
    # Equal networks, critics' rates and noise. SB3's DDPG replays for its policy, too, which the paper's DPG does not.
    same = {key: shared[key] for key in ("learning_rate", "batch_size", "learning_starts", "gamma")}
    sizes = {"net_arch": shared["policy_kwargs"]["net_arch"]}
    noise = shared["policy_kwargs"]["noise_std"]
    # One transition a policy step is a noisy gradient: at the rate above SVG(0)'s policy ran to its bounds and stayed.
    slow = {"policy_replay": False, "learning_rate": 1e-4, "qf_learning_rate": 1e-3, "model_learning_rate": 1e-3}
    # One policy step an episode, along a trajectory in which much noise drives the joints against their limits. With gamma at
    # the other's 0.98 the gradient's norm reached the hundreds, and nothing was learned.
    whole = {
        "horizon": None,
        "policy_replay": False,
        "learning_rate": 3e-3,
        "max_grad_norm": 1.0,
        "noise_std": 0.2,
        "gamma": 0.9,
    }
    return {
        "svg-cartpole": Study(
            cart,
            30_000,
            1_000,
            {
                "SVG(1)-ER": svg(),
                "SVG(1)": svg(**slow),
                "SVG(0)": svg(**slow, horizon=0),
                "DPG (SB3's DDPG)": ("DDPG", {**same, "policy_kwargs": sizes, "noise": noise}),
            },
            seeds=(0, 1, 2),
        ),
        "svg-swimmer": Study(
            swimmer,
            30_000,
            1_500,
            {
                f"{name}, {units} units": with_known_reward(swimmer, swimmer_reward, [units, units], **changes)
                for name, changes in (("SVG(1)-ER", {}), ("SVG(inf)", whole))
                for units in (20, 5)
            },
            seeds=(0, 1, 2),
            eval_episodes=10,
        ),
    }


def studies() -> dict[str, Study]:
    cheetah, hopper, swimmer = "HalfCheetah-v5", "Hopper-v5", "Swimmer-v5"
    pendulum, cart, observable = "Pendulum-v1", "InvertedPendulum-v5", "HalfCheetahObservable-v5"
    tracking = {"y (m)": 3, "phi (rad)": 4, "u (m per s)": 0}
    tenth = {"learning_rate": LinearSchedule(3e-5, 3e-7, 1.0), "qf_learning_rate": LinearSchedule(8e-5, 8e-7, 1.0)}
    return {
        "halfcheetah": Study(
            cheetah,
            50_000,
            2_500,
            # What of it is the value gradient's, and what the networks'?
            {"DVPG": ("DVPG", {}), "DVPG's networks, horizon 0": ("DVG", {"horizon": 0}), **BASELINES},
        ),
        # How far should the default look into its model? (DVPG(1, 0.1) is in the study above.)
        "halfcheetah-horizons": Study(
            cheetah,
            20_000,
            2_500,
            {
                "DVPG(3, 0.5)": ("DVPG", {"horizon": 3, "lambda_": 0.5}),
                "DVG(3)": ("DVG", {"horizon": 3}),
                "DVPG(1, 0.5)": ("DVPG", {"horizon": 1, "lambda_": 0.5}),
                "horizon 0": ("DVG", {"horizon": 0}),
            },
        ),
        "halfcheetah-paper": Study(cheetah, 50_000, 2_500, paper(cheetah)),
        "pendulum": Study(
            pendulum, 5_000, 500, {"DVPG": zoo("DVPG", pendulum), "DVG": zoo("DVG", pendulum)}, eval_episodes=10
        ),
        "invertedpendulum": Study(cart, 10_000, 1_000, {"DVPG": zoo("DVPG", cart), "DVG": zoo("DVG", cart)}),
        "pendulum-prior": Study(
            pendulum,
            2_000,
            250,
            {"MPG, rule": with_prior(pendulum, "rule"), "MPG, measured weights": with_prior(pendulum, "variance")},
            seeds=(0, 1, 2),
            eval_episodes=10,
        ),
        # Table I of the MPG paper; an environment step is an iteration. As many of its 100,000 as two cores have time for.
        # The rates of the authors' code are a tenth of those printed in Table VI; path tracking is done with both.
        **{
            name: Study(
                env,
                100_000,
                1_000,
                mixed_policy_gradient(env, **rates),
                seeds=(0, 1, 2),
                eval_env_kwargs={"early_reset": False},
                stop=stop,
                errors=errors,
            )
            for name, env, rates, stop, errors in (
                ("pathtracking", "PathTracking-v0", {}, 10_000, tracking),
                ("pathtracking-tenth", "PathTracking-v0", tenth, 12_000, tracking),
                ("pendulum-explicit", "InvertedPendulumExplicit-v5", {}, 10_000, {}),
            )
        },
        # Does what it loses when its weights turn to the data come back?
        "pathtracking-longer": Study(
            "PathTracking-v0",
            100_000,
            1_000,
            {name: mixed_policy_gradient("PathTracking-v0")[name] for name in ("MPG-v1, on-policy",)},
            seeds=(0, 1, 2),
            eval_env_kwargs={"early_reset": False},
            stop=20_000,
            errors=tracking,
        ),
        # With eight vehicles, as in the authors' code, and as many errors as its Fig. 7.
        "pathtracking-authors": Study(
            "PathTrackingAuthorsUnits-v0",
            100_000,
            1_000,
            in_authors_units(),
            seeds=(0, 1, 2),
            eval_env_kwargs={"early_reset": False, "reward_unit": 1.0},
            stop=10_000,
            n_envs=8,
            errors=tracking,
        ),
        "pendulum-ensembles": Study(pendulum, 2_500, 250, ensembles(pendulum), eval_episodes=10),
        "invertedpendulum-ensembles": Study(cart, 5_000, 500, ensembles(cart)),
        "halfcheetah-ensembles": Study(cheetah, 20_000, 2_500, ensembles(cheetah), seeds=(0, 1, 2)),
        "hopper-ensembles": Study(hopper, 30_000, 2_500, ensembles(hopper), seeds=(0, 1, 2)),
        "maac-ablations": Study(pendulum, 1_500, 250, maac_ablations(pendulum), eval_episodes=10),
        "mve": Study(observable, 10_000, 1_000, mve_versions(observable), seeds=(0, 1, 2)),
        "svg-hand": Study("Hand-v0", 100_000, 20_000, svg_hand(), seeds=(0, 1, 2), eval_episodes=10),
        "halfcheetah-svg": Study(cheetah, 20_000, 2_500, svg_cheetah(), seeds=(0, 1, 2)),
        "pendulum-svg": Study(pendulum, 5_000, 500, svg_pendulum(pendulum), seeds=(0, 1, 2), eval_episodes=10),
        "hopper": Study(hopper, 100_000, 5_000, {"DVPG": zoo("DVPG", hopper), **BASELINES}),
        "hopper-paper": Study(hopper, 100_000, 5_000, paper(hopper)),
        "swimmer": Study(swimmer, 100_000, 5_000, {"DVPG": zoo("DVPG", swimmer), **BASELINES}),
        "swimmer-paper": Study(swimmer, 100_000, 5_000, paper(swimmer)),
        **svg_tasks(),
    }


def make_model(study: Study, system: str, seed: int, device: str = "cpu") -> BaseAlgorithm:
    """The algorithm of one run, ready to learn."""
    import gymnasium as gym
    import numpy as np
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.noise import NormalActionNoise

    from sb3_valuegrad.envs.vec_env import VectorEnvForSB3

    name, given = study.systems[system]
    kwargs = dict(given)
    env: Any = gym.make(study.env)
    if study.n_envs > 1:
        env = VectorEnvForSB3(gym.make_vec(study.env, study.n_envs))
    if "noise" in kwargs:
        shape = env.action_space.shape
        kwargs["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, kwargs.pop("noise")))
    for module in (sb3_valuegrad, stable_baselines3, sb3_contrib):
        if hasattr(module, name):
            return getattr(module, name)("MlpPolicy", env, seed=seed, device=device, **kwargs)
    raise ValueError(f"studies.py names the algorithm {name!r}, which no package here has")
