"""Hyperparameter search: what RL Zoo's ``-optimize`` samples for our algorithms, and the way back from a trial."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np
import optuna
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from torch import nn

from sb3_valuegrad.world_models import GaussianEnsemble, MlpWorldModel

Params = dict[str, Any]

NET_ARCHS = {"small": [64, 64], "medium": [256, 256], "big": [400, 300], "deep": [200, 200, 200, 200]}
POLICY_ARCHS = MLP_ARCHS = ("small", "medium", "big")
ENSEMBLE_ARCHS = ("small", "medium", "deep")
ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "mish": nn.Mish, "elu": nn.ELU, "relu": nn.ReLU}
NOISES: dict[str, Callable[..., ActionNoise]] = {
    "normal": NormalActionNoise,
    "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise,
}
NESTED = ("policy_kwargs", "replay_buffer_kwargs")
"""Arguments that are dictionaries: RL Zoo replaces them whole by what was sampled, we merge."""

POLICY_PARAMS = ("n_critics", "layer_norm", "squash", "learn_noise")
MODEL_PARAMS = ("share_network", "normalize", "weight_decay", "n_members")
HER_PARAMS = ("n_sampled_goal", "goal_selection_strategy")

yaml_entry: ContextVar[Params] = ContextVar("yaml_entry", default={})  # noqa: B039 (never changed in place)
"""The environment's hyperparameters without the sampled ones. RL Zoo does not show them to a sampler."""


def merged(base: Params, sampled: Params) -> Params:
    """What was sampled on top of ``base``, nested dictionaries key by key."""
    nested = {
        key: merged(base[key], value)
        for key, value in sampled.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return {**base, **sampled, **nested}


def with_yaml(sampled: Params, entry: Params) -> Params:
    """What was sampled, with what the YAML's nested arguments say beside it."""
    return merged({key: entry[key] for key in NESTED if isinstance(entry.get(key), dict)}, sampled)


def convert_params(sampled: Params) -> Params:
    """Sampled values as the algorithm's arguments, RL Zoo's ``noise_type`` and ``noise_std`` among them.

    :param sampled: ``trial.params``
    """
    params = dict(sampled)
    if "one_minus_gamma" in params:
        params["gamma"] = 1 - params.pop("one_minus_gamma")
    if "batch_size_pow" in params:
        params["batch_size"] = 2 ** params.pop("batch_size_pow")
    if "ent_coef_init" in params:
        params["ent_coef"] = f"auto_{params.pop('ent_coef_init')}"
    if "target_copies" in params:
        params["tau"], params["target_update_interval"] = 1.0, params.pop("target_copies")
    if "longest_horizon" in params:
        params["horizons"] = [0, params.pop("longest_horizon")]
    if params.get("target_estimator") == "td":
        params["target_horizon"] = 0  # the only one that goes with it; the YAML may say another
    model_kwargs = {key: params.pop(f"model_{key}") for key in MODEL_PARAMS if f"model_{key}" in params}
    if "model_n_dropped" in params:
        model_kwargs["n_elites"] = model_kwargs["n_members"] - params.pop("model_n_dropped")
    policy_kwargs = {key: params.pop(key) for key in POLICY_PARAMS if key in params}
    if "policy_noise_std" in params:  # noise_std is RL Zoo's, of noise on actions
        policy_kwargs["noise_std"] = params.pop("policy_noise_std")
    for prefix, kwargs in (("", policy_kwargs), ("model_", model_kwargs)):
        if f"{prefix}net_arch" in params:
            kwargs["net_arch"] = list(NET_ARCHS[params.pop(f"{prefix}net_arch")])
    if "activation_fn" in params:
        # One for policy and model: value gradients pass through both.
        policy_kwargs["activation_fn"] = ACTIVATIONS[params.pop("activation_fn")]
        if model_kwargs:
            model_kwargs["activation_fn"] = policy_kwargs["activation_fn"]
    if model_kwargs:
        policy_kwargs["world_model_kwargs"] = model_kwargs
    if policy_kwargs:
        params["policy_kwargs"] = policy_kwargs
    her_kwargs = {key: params.pop(key) for key in HER_PARAMS if key in params}
    if her_kwargs:
        params["replay_buffer_kwargs"] = her_kwargs
    if "noise_type" in params and params["noise_type"] is None:
        # RL Zoo would hand both keys to the constructor. Without this None its default would add noise.
        del params["noise_type"], params["noise_std"]
        params["action_noise"] = None
    return params


def _sample(trial: optuna.Trial, her: bool, target_copies: bool) -> None:
    """Draw what all algorithms have; the values are found in ``trial.params``."""
    trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True)
    trial.suggest_int("batch_size_pow", 6, 10)
    for name in ("learning_rate", "qf_learning_rate", "model_learning_rate"):
        trial.suggest_float(name, 1e-5, 5e-3, log=True)
    if target_copies:
        trial.suggest_int("target_copies", 10, 200, log=True)
    else:
        trial.suggest_float("tau", 0.001, 0.08, log=True)
    trial.suggest_int("policy_delay", 1, 3)
    trial.suggest_categorical("net_arch", list(POLICY_ARCHS))
    trial.suggest_categorical("activation_fn", list(ACTIVATIONS))
    trial.suggest_int("n_critics", 1, 2)
    trial.suggest_categorical("layer_norm", [False, True])
    if her:
        trial.suggest_int("n_sampled_goal", 1, 5)
        trial.suggest_categorical("goal_selection_strategy", ["final", "episode", "future"])


def _sample_deterministic(trial: optuna.Trial) -> None:
    """What a deterministic policy explores with, and how often a model that learns in step does so."""
    trial.suggest_int("model_gradient_steps", 1, 2)
    trial.suggest_categorical("noise_type", [*NOISES, None])
    trial.suggest_float("noise_std", 0.0, 0.5)


def _sample_imagination(trial: optuna.Trial) -> None:
    """The stochastic family's: fits, imagined data, and where the temperature starts."""
    trial.suggest_float("ent_coef_init", 0.01, 1.0, log=True)
    if yaml_entry.get().get("model_fit_freq", 250) is not None:  # null: the model learns in step with the critic
        trial.suggest_categorical("model_fit_freq", [250, 500, 1000])
    trial.suggest_float("real_ratio", 0.05, 1.0)
    trial.suggest_int("rollout_length", 1, 5)


def _sample_mlp(trial: optuna.Trial) -> None:
    trial.suggest_categorical("model_net_arch", list(MLP_ARCHS))
    trial.suggest_categorical("model_share_network", [False, True])
    trial.suggest_categorical("model_normalize", [False, True])
    trial.suggest_float("model_weight_decay", 1e-7, 1e-3, log=True)


def _sample_ensemble(trial: optuna.Trial) -> None:
    trial.suggest_categorical("model_net_arch", list(ENSEMBLE_ARCHS))
    trial.suggest_int("model_n_members", 3, 8)
    trial.suggest_int("model_n_dropped", 0, 2)
    trial.suggest_float("model_weight_decay", 1e-7, 1e-3, log=True)


MODEL_SAMPLERS: dict[Any, Callable[[optuna.Trial], None]] = {
    "mlp": _sample_mlp,
    MlpWorldModel: _sample_mlp,
    "ensemble": _sample_ensemble,
    GaussianEnsemble: _sample_ensemble,
}
"""By ``world_model_class``; of a class that is not here nothing is sampled."""


def _arguments(
    trial: optuna.Trial, n_actions: int, additional_args: Params, world_model: str = "mlp", target_copies: bool = False
) -> Params:
    """The trial's values as arguments, with a noise object and what the YAML says beside them.

    :param world_model: the algorithm's default ``world_model_class``
    :param target_copies: target networks become copies every so many updates; False: they follow softly
    """
    entry = yaml_entry.get()
    _sample(trial, additional_args["using_her_replay_buffer"], target_copies)
    world_model_class = (entry.get("policy_kwargs") or {}).get("world_model_class", world_model)
    if world_model_class in MODEL_SAMPLERS:
        MODEL_SAMPLERS[world_model_class](trial)
    params = convert_params(trial.params)
    if "noise_type" in params:
        std = params.pop("noise_std")
        params["action_noise"] = NOISES[params.pop("noise_type")](np.zeros(n_actions), np.full(n_actions, std))
    trial.set_user_attr("gamma", params["gamma"])
    trial.set_user_attr("batch_size", params["batch_size"])
    return with_yaml(params, entry)


def sample_dvg_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Params) -> Params:
    """RL Zoo's sampler of DVG.

    :param trial: Optuna's trial
    :param n_actions: length of an action, for its noise
    :param n_envs: not used
    :param additional_args: RL Zoo's; tells whether hindsight replay is used
    """
    trial.suggest_int("horizon", 1, 5)
    trial.suggest_float("target_policy_noise", 0.0, 0.3)
    _sample_deterministic(trial)
    return _arguments(trial, n_actions, additional_args)


def sample_dvpg_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Params) -> Params:
    """RL Zoo's sampler of DVPG; parameters of :func:`sample_dvg_params`."""
    trial.suggest_float("lambda_", 0.0, 0.9)
    return sample_dvg_params(trial, n_actions, n_envs, additional_args)


def sample_mve_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Params) -> Params:
    """RL Zoo's sampler of MVE; parameters of :func:`sample_dvg_params`."""
    trial.suggest_int("horizon", 1, 10)
    trial.suggest_categorical("td_k", [False, True])
    trial.suggest_float("imagined_action_noise", 0.0, 0.3)
    _sample_deterministic(trial)
    return _arguments(trial, n_actions, additional_args)


def sample_mpg_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Params) -> Params:
    """RL Zoo's sampler of MPG; parameters of :func:`sample_dvg_params`."""
    trial.suggest_int("longest_horizon", 1, 25)
    trial.suggest_float("eta", 0.01, 0.3, log=True)
    trial.suggest_int("weighting_updates", 1000, 30_000, log=True)
    trial.suggest_float("target_policy_noise", 0.0, 0.3)
    _sample_deterministic(trial)
    return _arguments(trial, n_actions, additional_args)


def sample_maac_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Params) -> Params:
    """RL Zoo's sampler of MAAC; parameters of :func:`sample_dvg_params`."""
    trial.suggest_int("horizon", 1, 5)
    trial.suggest_int("n_samples", 1, 5)
    if trial.suggest_categorical("target_estimator", ["td", "mve", "steve"]) != "td":
        trial.suggest_int("target_horizon", 1, 5)
    return sample_mbpo_params(trial, n_actions, n_envs, additional_args)


def sample_mbpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Params) -> Params:
    """RL Zoo's sampler of MBPO, which has no horizon; parameters of :func:`sample_dvg_params`."""
    _sample_imagination(trial)
    return _arguments(trial, n_actions, additional_args, world_model="ensemble")


def sample_svg_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Params) -> Params:
    """RL Zoo's sampler of SVG(k); parameters of :func:`sample_dvg_params`."""
    trial.suggest_int("horizon", 1, 5)
    trial.suggest_float("max_importance_weight", 1.0, 20.0, log=True)
    trial.suggest_float("policy_noise_std", 0.05, 1.0, log=True)
    trial.suggest_categorical("learn_noise", [False, True])
    trial.suggest_categorical("squash", [False, True])
    trial.suggest_int("model_gradient_steps", 1, 2)
    return _arguments(trial, n_actions, additional_args, target_copies=True)


SAMPLERS = {
    "dvg": sample_dvg_params,
    "dvpg": sample_dvpg_params,
    "mve": sample_mve_params,
    "maac": sample_maac_params,
    "mbpo": sample_mbpo_params,
    "mpg": sample_mpg_params,
    "svg": sample_svg_params,
}
