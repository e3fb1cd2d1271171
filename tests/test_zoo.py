"""RL Zoo with our algorithms: its real scripts, in processes of their own, on a few hundred steps of Pendulum."""

import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend
from torch import nn

pytest.importorskip("rl_zoo3")

import rl_zoo3.exp_manager
import rl_zoo3.hyperparams_opt
import rl_zoo3.utils
from stable_baselines3.common.noise import NormalActionNoise

import sb3_valuegrad.zoo
from sb3_valuegrad import DVG, DVPG, MAAC, MBPO, MPG, MVE, SVG
from sb3_valuegrad.envs.priors import PRIORS
from sb3_valuegrad.exploration import AdaptiveParameterNoise
from sb3_valuegrad.zoo import cli, search
from sb3_valuegrad.zoo.manager import WRAPPERS, _make_parameter_noise, hyperparams_file, make_schedules, read_entry
from sb3_valuegrad.zoo.report import read_baseline, run_folder

ROOT = Path(__file__).parent.parent
OURS = ["-m", "sb3_valuegrad.zoo"]
TINY = ["--env", "Pendulum-v1", "--algo", "dvpg", "--num-threads", "1", "--device", "cpu"]
SMALL_NETS = "policy_kwargs:dict(net_arch=[16],world_model_kwargs=dict(net_arch=[16]))"
PARAMS = ["-params", "learning_starts:50", "batch_size:16", SMALL_NETS]
ENTRY = {"policy_kwargs": {"n_critics": 1, "world_model_kwargs": {"termination": "none", "net_arch": [8]}}}


def environment(**extra: str) -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        **extra,
    }


def python(folder: Path, *arguments: str, **extra: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in a folder, with nothing on its standard input."""
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one short training run by our command, its replay buffer kept."""
    folder = tmp_path_factory.mktemp("zoo")
    flags = ["-n", "400", "--eval-freq", "200", "--eval-episodes", "2", "--save-replay-buffer", "--progress"]
    result = python(folder, *OURS, "train", *TINY, *flags, *PARAMS, "--seed", "1")
    assert str(hyperparams_file("dvpg")) in result.stdout
    return folder


# ---------------------------------------------------------------- registration


def test_register_is_idempotent_and_in_place() -> None:
    algos, manager = rl_zoo3.ALGOS, rl_zoo3.exp_manager.ExperimentManager
    sb3_valuegrad.zoo.register()
    methods = [getattr(manager, name) for name in WRAPPERS]
    sb3_valuegrad.zoo.register()
    ours = {"dvg": DVG, "dvpg": DVPG, "mve": MVE, "maac": MAAC, "mbpo": MBPO, "mpg": MPG, "svg": SVG}
    assert sb3_valuegrad.zoo.ALGORITHMS == ours and algos.items() >= ours.items()
    assert [getattr(manager, name) for name in WRAPPERS] == methods


@pytest.mark.parametrize("first", ["rl_zoo3.exp_manager", "rl_zoo3.train", "sb3_valuegrad.zoo"])
def test_custom_envs_registers_whatever_is_imported_first(tmp_path: Path, first: str) -> None:
    """RL Zoo reads custom_envs.py in the middle of importing its exp_manager."""
    (tmp_path / "custom_envs.py").write_text(cli.CUSTOM_ENVS)
    code = (
        f"import {first}, rl_zoo3.train, rl_zoo3.exp_manager as m, rl_zoo3.enjoy;"
        "assert 'dvpg' in m.ALGOS and 'dvpg' in rl_zoo3.train.ALGOS and 'dvpg' in m.HYPERPARAMS_SAMPLER;"
        "assert hasattr(m.ExperimentManager.objective, '__wrapped__');"
        "assert rl_zoo3.train.ExperimentManager is m.ExperimentManager is rl_zoo3.enjoy.ExperimentManager"
    )
    python(tmp_path, "-c", code)


def test_init_keeps_a_file_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli.init()
    cli.init()
    (tmp_path / "custom_envs.py").write_text("import gymnasium\n")
    with pytest.raises(SystemExit, match="register"):
        cli.init()
    assert (tmp_path / "custom_envs.py").read_text() == "import gymnasium\n"


def test_unknown_script_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sb3-valuegrad", "fly"])
    with pytest.raises(SystemExit, match="record_video"):
        cli.main()


def test_scripts_that_start_scripts_start_ours() -> None:
    assert cli._ours(["python", "-m", "rl_zoo3.record_video", "--algo", "dvpg"]) == [
        *(sys.executable, *OURS),
        *("record_video", "--algo", "dvpg"),
    ]
    assert cli._ours(["python", "enjoy.py", "-n", "1"]) == [sys.executable, *OURS, "enjoy", "-n", "1"]
    assert cli._ours(["ffmpeg", "-i", "x"]) == ["ffmpeg", "-i", "x"]


# ---------------------------------------------------------------- train, continue, replay


def test_train_leaves_model_evaluations_and_readable_config(run: Path) -> None:
    folder = run / "logs/dvpg/Pendulum-v1_1"
    model = DVPG.load(folder / "Pendulum-v1.zip", device="cpu")
    entry = read_entry(hyperparams_file("dvpg"), "Pendulum-v1")
    assert model.num_timesteps == 400 and model.horizon == entry["horizon"] and model.lambda_ == entry["lambda_"]
    assert (folder / "best_model.zip").is_file() and (folder / "replay_buffer.pkl").is_file()
    assert (folder / "Pendulum-v1/config.yml").read_text()


def test_continue_training(run: Path) -> None:
    """The steps of the first run count on, and its replay buffer is found."""
    zip_file = str(run / "logs/dvpg/Pendulum-v1_1/Pendulum-v1.zip")
    flags = ["-n", "200", "--eval-freq", "-1", "-i", zip_file, "-f", "continued"]
    result = python(run, *OURS, "train", *TINY, *flags, *PARAMS)
    assert "Loading replay buffer" in result.stdout
    model = DVPG.load(run / "continued/dvpg/Pendulum-v1_1/Pendulum-v1.zip", device="cpu")
    before = DVPG.load(zip_file, device="cpu")
    assert model._n_updates > before._n_updates
    same = model.actor.state_dict()["mu.0.weight"] == before.actor.state_dict()["mu.0.weight"]
    assert not same.all()


@pytest.mark.parametrize("extra", [["--load-best"], ["--n-envs", "2", "--stochastic"]])
def test_enjoy(run: Path, extra: list[str]) -> None:
    result = python(run, *OURS, "enjoy", *TINY, "-f", "logs", "--no-render", "-n", "201", "--exp-id", "1", *extra)
    assert "Loading logs/dvpg/Pendulum-v1_1/" in result.stdout
    assert "Mean reward" in result.stdout or "--n-envs" in extra


def test_benchmark(run: Path) -> None:
    """RL Zoo starts `python enjoy.py` in the working folder for each run; ours are replayed all the same."""
    flags = ["--log-dir", "logs", "--no-hub", "-n", "400", "--test-mode"]
    result = python(run, *OURS, "benchmark", *flags)
    assert "Mean reward" in result.stdout and "dvpg" in (run / "logs/benchmark/benchmark.md").read_text()


def test_plots(run: Path) -> None:
    """RL Zoo's plot_from_file needs two runs."""
    for index in (1, 2):
        shutil.copytree(run / "logs/dvpg/Pendulum-v1_1", run / f"two/dvpg/Pendulum-v1_{index}")
    common = ["-e", "Pendulum-v1", "-f", "two"]
    python(run, *OURS, "plot_train", "-a", "dvpg", *common, "-w", "1")
    python(run, *OURS, "all_plots", "-a", "dvpg", *common, "--no-display", "-o", "results", "-max", "400")
    python(run, *OURS, "plot_from_file", "-i", "results.pkl", "-l", "DVPG", "-o", "figure.svg")
    assert (run / "figure.svg").is_file()


def test_record_video(run: Path) -> None:
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    flags = [*TINY[:4], "-f", "logs", "-n", "20", "--no-render", "-o", "videos"]
    python(run, *OURS, "record_video", *flags, SDL_VIDEODRIVER="dummy")
    assert list((run / "videos").glob("*.mp4"))


def test_plain_rl_zoo_in_a_folder_with_custom_envs(tmp_path: Path) -> None:
    python(tmp_path, *OURS, "init")
    python(tmp_path, "-m", "rl_zoo3.train", *TINY, "-n", "100", "--eval-freq", "-1", *PARAMS)
    result = python(tmp_path, "-m", "rl_zoo3.enjoy", *TINY, "-f", "logs", "--no-render", "-n", "200")
    assert "Mean reward" in result.stdout


def test_the_papers_setting(tmp_path: Path) -> None:
    flags = ["--conf-file", "paper", "-n", "60", "--eval-freq", "-1", "-params", "learning_starts:50"]
    python(tmp_path, *OURS, "train", *TINY, *flags)
    model = DVPG.load(tmp_path / "logs/dvpg/Pendulum-v1_1/Pendulum-v1.zip", device="cpu")
    assert model.batch_size == 128 and len(model.critic.q_networks) == 1
    assert model.policy.world_model_kwargs["termination"] == "none"


SMALL_ENTRY: dict[str, dict[str, Any]] = {
    "mve": {"horizon": 2, "policy_kwargs": "dict(net_arch=[8], world_model_kwargs=dict(net_arch=[8], termination='none'))"},
    "maac": {
        "model_fit_freq": 5,
        "model_fit_kwargs": {"max_epochs": 1},
        "rollouts_per_step": 1,
        "imagined_buffer_size": 100,
        "target_estimator": "steve",
        "target_horizon": 1,
        "policy_kwargs": "dict(net_arch=[8], world_model_kwargs=dict(net_arch=[8], n_members=3, n_elites=2, "
        "termination='none'))",
    },
}
SMALL_ENTRY["mpg"] = {**SMALL_ENTRY["mve"], "horizons": [0, 2]}
del SMALL_ENTRY["mpg"]["horizon"]
SMALL_ENTRY["svg"] = SMALL_ENTRY["mve"]
SMALL_ENTRY["mbpo"] = {key: value for key, value in SMALL_ENTRY["maac"].items() if not key.startswith("target")}


@pytest.mark.parametrize("name", SMALL_ENTRY)
def test_train_continue_enjoy_and_optimize(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The life of a run, in this process: another would spend most of its time on RL Zoo's imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "NET_ARCHS", {key: [8] for key in search.NET_ARCHS})

    def command(script: str, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sb3-valuegrad", script, "--algo", name, "--env", "Pendulum-v1", *flags])
        cli.main()
        return str(capsys.readouterr().out)

    algorithm: Any = sb3_valuegrad.zoo.ALGORITHMS[name]
    entry = {"n_timesteps": 50, "policy": "MlpPolicy", "learning_starts": 40, "batch_size": 8, **SMALL_ENTRY[name]}
    Path("small.yml").write_text(yaml.safe_dump({"Pendulum-v1": entry}))
    train = ["--conf-file", "small.yml", "--device", "cpu", "--eval-freq", "-1", "--seed", "1"]

    command("train", *train, "-f", "logs", "--save-replay-buffer")
    zip_file = f"logs/{name}/Pendulum-v1_1/Pendulum-v1.zip"
    first = algorithm.load(zip_file, device="cpu")
    assert first.num_timesteps == 50 and first._n_updates == 10 and first._n_model_updates > 0

    assert "Loading replay buffer" in command("train", *train, "-f", "more", "-i", zip_file)
    second = algorithm.load(f"more/{name}/Pendulum-v1_1/Pendulum-v1.zip", device="cpu")
    assert second._n_updates > first._n_updates and second._n_model_updates > first._n_model_updates

    replay = command("enjoy", "-f", "logs", "--no-render", "-n", "201", "--device", "cpu")
    assert f"Loading logs/{name}/Pendulum-v1_1/" in replay and "Mean reward" in replay

    study = ["--storage", "study.log", "--study-name", "pendulum"]
    flags = ["-optimize", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
    command("train", *train, *study, *flags, "--n-startup-trials", "2")
    storage = optuna.storages.JournalStorage(JournalFileBackend("study.log"))
    trials = optuna.load_study(study_name="pendulum", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]

    command("train", *train, *study, "--trial-id", "1", "-n", "45", "-f", "trial")
    model = algorithm.load(f"trial/{name}/Pendulum-v1_1/Pendulum-v1.zip", device="cpu")
    assert model.gamma == 1 - trials[1].params["one_minus_gamma"]
    assert model.policy.world_model_kwargs["termination"] == "none"
    if name == "mpg":
        assert model.horizons == [0, trials[1].params["longest_horizon"]] and model.eta == trials[1].params["eta"]
    elif name == "svg":
        assert model.target_update_interval == trials[1].params["target_copies"] and model.tau == 1
        assert model.policy.noise_kwargs["noise_std"] == trials[1].params["policy_noise_std"]
    elif name != "mve":
        assert model.world_model.n_members == trials[1].params["model_n_members"]
        assert model.imagined_buffer_size == 100


# ---------------------------------------------------------------- hyperparameter search


def test_optimize_with_two_workers_and_train_a_trial(tmp_path: Path) -> None:
    """Two workers share a study of two trials; a trial's values can then be trained with."""
    yaml_file = tmp_path / "dvpg.yml"
    kwargs = "dict(world_model_kwargs=dict(termination='none'))"
    entry = {"n_timesteps": 120, "policy": "MlpPolicy", "learning_starts": 100, "policy_kwargs": kwargs}
    yaml_file.write_text(yaml.safe_dump({"Pendulum-v1": {**entry, "noise_type": "normal", "noise_std": 0.1}}))
    study = ["--storage", "study.log", "--study-name", "pendulum", "--conf-file", str(yaml_file)]
    flags = ["-optimize", "--n-trials", "1", "--eval-episodes", "1", "--pruner", "none", "--no-optim-plots", *study]
    command = [sys.executable, *OURS, "train", *TINY, *flags]
    workers = [
        subprocess.Popen([*command, "--seed", str(seed)], cwd=tmp_path, env=environment(), stdin=subprocess.DEVNULL)
        for seed in (1, 2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
    trials = optuna.load_study(study_name="pendulum", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]

    python(tmp_path, *OURS, "train", *TINY, *study, "--trial-id", "1", "--eval-freq", "-1", "-n", "105", "-f", "trial")
    model = DVPG.load(tmp_path / "trial/dvpg/Pendulum-v1_1/Pendulum-v1.zip", device="cpu")
    assert model.horizon == trials[1].params["horizon"] and model.lambda_ == trials[1].params["lambda_"]
    assert model.policy.world_model_kwargs["termination"] == "none"
    assert (model.action_noise is None) == (trials[1].params["noise_type"] is None)


def sampled(name: str, seed: int, entry: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A trial's values, and the arguments the sampler made of them."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    token = search.yaml_entry.set(entry)
    try:
        args = {"using_her_replay_buffer": False, "her_kwargs": {}}
        arguments = search.SAMPLERS[name](trial, 1, 1, args)
        return dict(trial.params), arguments
    finally:
        search.yaml_entry.reset(token)


@pytest.mark.parametrize("name, algorithm", sb3_valuegrad.zoo.ALGORITHMS.items())
@pytest.mark.parametrize("seed", range(4))
def test_sampled_arguments_make_a_model(name: str, algorithm: Any, seed: int) -> None:
    raw, arguments = sampled(name, seed, ENTRY)
    model = algorithm("MlpPolicy", "Pendulum-v1", device="cpu", buffer_size=10, **arguments)
    direct = {"horizon", "lambda_", "td_k", "imagined_action_noise", "n_samples", "target_estimator", "target_horizon"}
    direct |= {"eta", "weighting_updates", "target_policy_noise"}
    direct |= {"real_ratio", "rollout_length", "model_fit_freq", "tau", "policy_delay", "model_learning_rate"}
    for argument in direct & raw.keys():
        assert getattr(model, argument) == raw[argument]
    assert raw.get("horizon", 1) >= 1
    assert (model.action_noise is None) == (raw.get("noise_type") is None)
    world_model_kwargs = arguments["policy_kwargs"]["world_model_kwargs"]
    assert world_model_kwargs["termination"] == "none"
    assert world_model_kwargs["net_arch"] == search.NET_ARCHS[raw["model_net_arch"]]
    assert ENTRY["policy_kwargs"]["n_critics"] == 1 and "activation_fn" not in ENTRY["policy_kwargs"]


def test_every_argument_of_a_row_is_sampled() -> None:
    """What separates one system of the table from another is searched."""
    of_maac = {"horizon", "n_samples", "target_estimator", "real_ratio", "rollout_length", "model_fit_freq", "ent_coef_init"}
    of_ensemble = {"model_net_arch", "model_n_members", "model_n_dropped"}
    assert {"horizon", "td_k", "imagined_action_noise"} <= sampled("mve", 0, {})[0].keys()
    assert {"horizon", "max_importance_weight", "policy_noise_std", "target_copies"} <= sampled("svg", 0, {})[0].keys()
    assert not {"tau", "noise_type"} & sampled("svg", 0, {})[0].keys()
    assert {"longest_horizon", "eta", "weighting_updates"} <= sampled("mpg", 0, {})[0].keys()
    assert of_maac | of_ensemble <= sampled("maac", 0, {})[0].keys()
    assert not {"horizon", "target_estimator", "noise_type"} & sampled("mbpo", 0, {})[0].keys()


def test_steves_horizon_in_the_yaml_does_not_survive_a_sampled_td() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"target_estimator": "td"})
    token = search.yaml_entry.set({"target_horizon": 2})
    arguments = search.sample_maac_params(study.ask(), 1, 1, {"using_her_replay_buffer": False})
    search.yaml_entry.reset(token)
    assert arguments["target_horizon"] == 0


def test_a_model_that_learns_in_step_stays_in_step() -> None:
    raw, _ = sampled("maac", 0, {"model_fit_freq": None, "policy_kwargs": {"world_model_class": "mlp"}})
    assert "model_fit_freq" not in raw and "model_share_network" in raw


@pytest.mark.parametrize("name", sb3_valuegrad.zoo.ALGORITHMS)
@pytest.mark.parametrize("seed", range(4))
def test_converter_is_the_way_back(name: str, seed: int) -> None:
    """Converted values agree with the sampled arguments, and a constructor takes them if the noise keys are none."""
    raw, arguments = sampled(name, seed, {})
    sb3_valuegrad.zoo.register()
    converted = rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER[name](raw)
    if "noise_type" in converted:
        assert arguments.pop("action_noise") is not None
        del converted["noise_type"], converted["noise_std"]
    assert converted == arguments


def test_converter_without_noise_drops_both_keys() -> None:
    assert search.convert_params({"noise_type": None, "noise_std": 0.2}) == {"action_noise": None}


def test_other_world_models_keep_their_own_settings() -> None:
    """What is sampled of the MLP model's settings is not forced on a model of another class."""
    _, arguments = sampled("dvpg", 0, {"policy_kwargs": {"world_model_class": "another"}})
    assert arguments["policy_kwargs"]["world_model_class"] == "another"
    assert "world_model_kwargs" not in arguments["policy_kwargs"]


def test_hindsight_replay_is_sampled_into_its_arguments() -> None:
    study = optuna.create_study()
    args = {"using_her_replay_buffer": True, "her_kwargs": {}}
    token = search.yaml_entry.set({"replay_buffer_kwargs": {"copy_info_dict": True}})
    arguments = search.sample_dvpg_params(study.ask(), 1, 1, args)
    search.yaml_entry.reset(token)
    assert set(arguments["replay_buffer_kwargs"]) == {"copy_info_dict", *search.HER_PARAMS}


# ---------------------------------------------------------------- YAML


def test_every_algorithm_has_sampler_and_yaml() -> None:
    assert search.SAMPLERS.keys() == sb3_valuegrad.zoo.ALGORITHMS.keys()
    files = [f"{folder}{name}" for name in sb3_valuegrad.zoo.ALGORITHMS for folder in ("", "paper/")]
    assert all(hyperparams_file(file).is_file() for file in files) and set(files) == set(TASKS)


DVPG_TASKS = ["HalfCheetah", "Hopper", "Swimmer", "Ant", "Humanoid", "HumanoidStandup", "InvertedPendulum", "Pendulum"]
MVE_TASKS = [f"{task}{seen}" for task in ("HalfCheetah", "Swimmer", "Walker2d") for seen in ("", "Observable")]
MAAC_TASKS = ["HalfCheetah", "Hopper", "Walker2d", "Ant"]
MBPO_TASKS = [*MAAC_TASKS, "Humanoid", "InvertedPendulum"]
SVG_TASKS = ["HalfCheetah", "Hopper", "Walker2d", "Swimmer", "Reacher"]
SVG_PAPER_TASKS = ["CartPoleSwingUp", "CartPoleBalance", "Swimmer3", "Swimmer5", "Swimmer7", "Reacher4Targets",
                   "ReacherMovingTarget", "Monoped"]  # fmt: skip
MPG_TASKS = ["PathTracking", "InvertedPendulumExplicit"]
SMALL_TASKS = ["InvertedPendulum", "Pendulum"]
TASKS = {
    **dict.fromkeys(["dvg", "dvpg", "paper/dvg", "paper/dvpg"], DVPG_TASKS),
    **{"mve": [*MVE_TASKS, *SMALL_TASKS], "paper/mve": MVE_TASKS},
    **{"maac": [*MAAC_TASKS, *SMALL_TASKS], "paper/maac": MAAC_TASKS},
    **{"mbpo": [*MBPO_TASKS, "Pendulum"], "paper/mbpo": MBPO_TASKS},
    **{"mpg": [*MAAC_TASKS, *SMALL_TASKS, *MPG_TASKS], "paper/mpg": MPG_TASKS},
    **{"svg": [*SVG_TASKS, *SMALL_TASKS, *SVG_PAPER_TASKS], "paper/svg": [*SVG_TASKS, *SVG_PAPER_TASKS]},
}


def entries(file: str) -> dict[str, dict[str, Any]]:
    loaded = yaml.safe_load(hyperparams_file(file).read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("file", TASKS)
def test_yaml_entries_are_arguments(file: str) -> None:
    found = entries(file)
    only = {
        "Pendulum": ["v1"],
        "PathTracking": ["v0"],
        "InvertedPendulumExplicit": ["v5"],
        **{task: ["v0"] for task in SVG_PAPER_TASKS},
    }
    versions = {task: only.get(task, ["v4", "v5"]) for task in TASKS[file]}
    assert set(found) == {"default", *(f"{task}-{version}" for task, of_task in versions.items() for version in of_task)}
    models: dict[str, Any] = {}
    for name, entry in found.items():
        arguments = {key: value for key, value in entry.items() if key != "n_timesteps"}
        task = name if name.startswith(tuple(MPG_TASKS)) else "Pendulum-v1"  # with a model of its own, or any
        assert entry["n_timesteps"] > 0
        if "train_freq" in arguments:
            arguments["train_freq"] = tuple(arguments["train_freq"])  # as RL Zoo does
        if "policy_kwargs" in arguments:
            arguments["policy_kwargs"] = eval(arguments["policy_kwargs"], {"nn": nn})
        key = json.dumps(arguments, default=repr, sort_keys=True)
        if key not in models:
            _make_parameter_noise(arguments)
            make_schedules(arguments)
            algorithm: Any = sb3_valuegrad.zoo.ALGORITHMS[Path(file).name]
            models[key] = algorithm(env=task, device="cpu", **{**arguments, "buffer_size": 10})
        numbers = [value for argument, value in entry.items() if argument.endswith("learning_rate")]
        for value in numbers:
            schedule = isinstance(value, str) and all(float(rate) > 0 for rate in value.removeprefix("lin_").split("_"))
            assert isinstance(value, float) or schedule, "write !!float 1e-3: YAML reads 1e-3 as a string"


@pytest.mark.parametrize("version", ["v4", "v5"])
def test_horizons_are_the_papers(version: str) -> None:
    """In the paper preset all of them; in ours, HalfCheetah's model is good enough for a longer look."""
    ours, papers = entries("dvpg"), entries("paper/dvpg")
    for task, horizon in {"Swimmer": 1, "Humanoid": 1, "Hopper": 2, "Ant": 2, "HumanoidStandup": 2}.items():
        assert ours[f"{task}-{version}"]["horizon"] == papers[f"{task}-{version}"]["horizon"] == horizon
    cheetah = f"HalfCheetah-{version}"
    assert papers[cheetah]["horizon"] == 1
    assert (ours[cheetah]["horizon"], ours[cheetah]["lambda_"]) == (3, 0.5)


@pytest.mark.parametrize("file", ["mpg", "paper/mpg"])
@pytest.mark.parametrize(("task", "updates"), [("PathTracking-v0", 9000), ("InvertedPendulumExplicit-v5", 4000)])
def test_mpg_has_its_papers_rule_and_priors(file: str, task: str, updates: int) -> None:
    """Table VI, and App. B."""
    entry = entries(file)[task]
    assert [entry[key] for key in ("horizons", "eta", "weighting_updates", "gamma")] == [[0, 25], 0.1, updates, 0.98]
    assert eval(entry["policy_kwargs"], {"nn": nn})["world_model_kwargs"] == PRIORS[task]


@pytest.mark.parametrize("version", ["v4", "v5"])
def test_svg_has_its_papers_numbers(version: str) -> None:
    """App. D: discount factors, truncation, and Table 1's hidden layers of policy, value function and model."""
    expected = {
        "HalfCheetah": (0.98, [100, 100], [400, 200], [40, 40]),
        "Hopper": (0.95, [100, 100], [400, 200], [50, 50]),
        "Swimmer": (0.995, [50, 50], [200, 100], [20, 20]),
        "Reacher": (0.98, [100, 100], [400, 200], [40, 40]),
    }
    for task, (gamma, pi, qf, model) in expected.items():
        entry = entries("paper/svg")[f"{task}-{version}"]
        kwargs = eval(entry["policy_kwargs"], {"nn": nn})
        assert (entry["gamma"], entry["max_importance_weight"], entry["target_update_interval"]) == (gamma, 5.0, 50)
        assert kwargs["net_arch"] == {"pi": pi, "qf": qf} and kwargs["activation_fn"] is nn.Tanh
        assert kwargs["world_model_kwargs"]["net_arch"] == model


@pytest.mark.parametrize("version", ["v4", "v5"])
def test_mve_and_maac_have_their_papers_numbers(version: str) -> None:
    """MVE: App. A and Table 1. MAAC: its steps in the model, two on Walker2d, and STEVE's."""
    rates = {"HalfCheetah": (1e-3, 1e-3, 1e-2, 10), "Swimmer": (1e-4, 1e-3, 1e-2, 10), "Walker2d": (1e-4, 1e-4, 1e-3, 3)}
    for task, expected in rates.items():
        entry = entries("paper/mve")[f"{task}-{version}"]
        assert tuple(entry[key] for key in ("learning_rate", "qf_learning_rate", "tau", "horizon")) == expected
        assert (entry["batch_size"], entry["gradient_steps"], entry["learning_starts"]) == (512, 4, 10_000)
    for task, horizon in {"HalfCheetah": 4, "Hopper": 4, "Ant": 4, "Walker2d": 2}.items():
        entry = entries("paper/maac")[f"{task}-{version}"]
        assert (entry["horizon"], entry["target_horizon"], entry["gradient_steps"]) == (horizon, 2, 8)


# ---------------------------------------------------------------- what the manager does for us


def manager(**kwargs: Any) -> Any:
    sb3_valuegrad.zoo.register()
    return rl_zoo3.exp_manager.ExperimentManager(Namespace(), kwargs.pop("algo", "dvpg"), "Pendulum-v1", "logs", **kwargs)


def test_yaml_is_ours_unless_a_file_is_given(tmp_path: Path) -> None:
    experiment = manager()
    experiment.read_hyperparameters()
    assert experiment.config == str(hyperparams_file("dvpg"))
    missing = manager(config=str(tmp_path / "missing.yml"))
    with pytest.raises(FileNotFoundError):
        missing.read_hyperparameters()
    other = manager(algo="td3")
    other.read_hyperparameters()
    assert "rl_zoo3" in other.config


def test_schedules_of_all_learning_rates(tmp_path: Path) -> None:
    rates = {"learning_rate": "lin_3e-4_3e-6", "qf_learning_rate": 1e-3, "model_learning_rate": "lin_1e-2"}
    experiment = manager(hyperparams={**rates, "noise_type": None, "noise_std": 0.1})
    hyperparams, saved = experiment.read_hyperparameters()
    assert not {"noise_type", "noise_std"} & (hyperparams.keys() | saved.keys())
    assert {name: saved[name] for name in rates} == rates
    hyperparams = experiment._preprocess_schedules(hyperparams)
    assert hyperparams["model_learning_rate"](0.5) == pytest.approx(5e-3) and hyperparams["qf_learning_rate"] == 1e-3
    falling = hyperparams["learning_rate"]
    assert [falling(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([3e-4, 1.515e-4, 3e-6])


@pytest.mark.parametrize("preset", ["mpg", "paper/mpg"])
def test_the_mpg_papers_rates_fall_to_a_hundredth(preset: str) -> None:
    """Table VI; in the paper preset alone."""
    entry = read_entry(hyperparams_file(preset), "PathTracking-v0")
    make_schedules(entry)
    for name, rate in {"learning_rate": 3e-4, "qf_learning_rate": 8e-4}.items():
        if preset == "mpg":
            assert name not in entry
        else:
            assert [entry[name](left) for left in (1.0, 0.0)] == pytest.approx([rate, 0.01 * rate], rel=1e-12)


@pytest.mark.parametrize("name", ["learning_rate", "qf_learning_rate", "model_learning_rate"])
@pytest.mark.parametrize("given", ["1e-3", "lin", "lin_", "lin_x", "lin_1e-3_x", "cos_1e-3", "lin_1e-3_1e-4_1e-5"])
def test_schedules_that_cannot_be_read(name: str, given: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}='{given}' must be a number.*lin_3e-4_3e-6"):
        make_schedules({name: given})


def test_rl_zoos_schedules_are_as_they_were() -> None:
    other = manager(algo="td3", hyperparams={"learning_rate": "lin_1e-3"})
    hyperparams = other._preprocess_schedules(other.read_hyperparameters()[0])
    assert repr(hyperparams["learning_rate"]) == "SimpleLinearSchedule(initial_value=0.001)"


def test_parameter_noise_by_its_name() -> None:
    given = {"noise_type": "adaptive-param", "noise_std": 0.3}
    hyperparams, saved = manager(hyperparams=given).read_hyperparameters()
    assert isinstance(hyperparams["action_noise"], AdaptiveParameterNoise) and hyperparams["action_noise"].delta == 0.3
    assert "noise_type" not in hyperparams and saved["noise_type"] == "adaptive-param"


# ---------------------------------------------------------------- report


def test_report(run: Path) -> None:
    """Baselines are compared at the last step that all their seeds share with the run."""
    rows = ["system,seed,step,return_mean", "DDPG,0,200,-10", "DDPG,1,200,-30", "DDPG,0,400,-5", "SAC,0,200,7"]
    csv_file = run / "baseline.csv"
    csv_file.write_text("\n".join(rows))
    flags = ["--env", "Pendulum-v1", "--exp-id", "1", "--baseline", "baseline.csv"]
    result = python(run, *OURS, "report", *flags)
    assert "At step 200: DVPG -" in result.stdout and "SB3 DDPG, mean of 2 seeds -20" in result.stdout
    assert "enjoy --algo dvpg --env Pendulum-v1 -f logs --exp-id 1" in result.stdout
    assert (run / "logs/dvpg/Pendulum-v1_1/learning_curve.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="TD3"):
        read_baseline(csv_file, "TD3")
    with pytest.raises(ValueError, match="eval-freq"):
        run_folder(str(run / "logs"), "dvpg", "Pendulum-v1", 99)


def test_noise_of_a_sampled_trial_has_the_actions_length() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"noise_type": "normal", "noise_std": 0.25})
    arguments = search.sample_dvg_params(study.ask(), 3, 1, {"using_her_replay_buffer": False})
    noise = arguments["action_noise"]
    assert isinstance(noise, NormalActionNoise)
    np.testing.assert_allclose(noise._sigma, np.full(3, 0.25))
