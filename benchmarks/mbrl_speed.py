"""Our ensemble and our MBPO beside mbrl-lib 0.2.0's, at equal sizes, in turns, on one thread.

    python benchmarks/mbrl_speed.py --embed docs/results.md      # the table, and results/mbrl_speed.csv
    python benchmarks/mbrl_speed.py --repeats 1 --updates 250    # a quick look

Equal are: HalfCheetah's data and sizes, 7 networks of 4 x 200 SiLU units that predict state change and reward (no
termination), of which 5 predict, scaled inputs, minibatches of 256; policy and two critics of 2 x 256 ReLU units, all data
imagined. An MBPO cycle is mbrl-lib's own for HalfCheetah: with each 250 environment steps (which are not timed) a fit, one
imagined step from each of 100 000 states, and 2500 updates (``--updates``); the fit has 10 epochs here, on 5000
transitions, of which 20% are held out. Times are the process's CPU time, medians, so that a busy machine disturbs little.

mbrl-lib is on PyPI: ``pip install --no-deps mbrl==0.2.0 hydra-core==1.3.2 omegaconf==2.3.0
antlr4-python3-runtime==4.9.3 termcolor``. Its parts are built directly, so that its configuration files, which name a
class that Gymnasium has not, are not needed.
"""

import argparse
import csv
import importlib.metadata
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch as th
from ensemble_speed import BATCH, RESULTS, A, S, build, medians, rows
from mbrl.algorithms.mbpo import rollout_model_and_populate_sac_buffer
from mbrl.env.termination_fns import no_termination
from mbrl.models import GaussianMLP, ModelEnv, ModelTrainer, OneDTransitionRewardModel
from mbrl.planning.sac_wrapper import SACAgent
from mbrl.third_party.pytorch_sac_pranz24.sac import SAC
from mbrl.types import TransitionBatch
from mbrl.util import ReplayBuffer
from mbrl.util.common import get_basic_buffer_iterators
from report import embed
from torch import nn

from sb3_valuegrad import MBPO
from sb3_valuegrad.gradients import guarded_step

EPOCHS, STEPS, HELD_OUT = 10, 5000, 0.2
IMAGINED = 100_000
# The most that ours may take of mbrl-lib's time (issue 3)
LIMITS = {"epoch": "0.90", "10000 imagined steps": "0.65", "100000 imagined steps": "0.50", "MBPO cycle": "0.80"}


def their_model() -> OneDTransitionRewardModel:
    silu = {"_target_": "torch.nn.SiLU"}
    network = GaussianMLP(S + A, S + 1, "cpu", 4, 7, 200, propagation_method="random_model", activation_fn_cfg=silu)
    model = OneDTransitionRewardModel(network, normalize=True, num_elites=5)
    model.set_elite(range(5))
    return model


def parts(repeats: int) -> dict[str, dict[str, float]]:
    """One update of the ensemble, and imagined steps, without what stands around them."""
    theirs, ours, data, first = their_model(), build(termination="none"), rows(BATCH), rows(2048)
    optimizer, none = th.optim.Adam(theirs.parameters(), 1e-3), np.zeros(2048, dtype=bool)
    arrays = [part.numpy() for part in (first.obs, first.actions, first.next_obs, first.rewards)]
    theirs.update_normalizer(TransitionBatch(*arrays, none, none))
    tensors = [data.obs, data.actions, data.next_obs, data.rewards, data.dones, data.dones]
    batch = TransitionBatch(*(part.expand(7, *part.shape).numpy() for part in tensors))

    def our_update() -> None:
        loss = th.stack(list(ours.losses(data).values())).sum()
        loss.item()
        guarded_step(loss, [ours.optimizer])

    found = {"update": medians({"theirs": (lambda: theirs.update(batch, optimizer), 10), "ours": (our_update, 10)}, repeats)}
    for count in (10_000, 100_000):
        many = rows(count)

        def imagined(many: Any = many) -> None:
            with th.no_grad():
                theirs.sample(many.actions, {"obs": many.obs, "propagation_indices": None}, rng=th.Generator())

        def our_imagined(many: Any = many) -> None:
            with th.no_grad():
                for obs, actions in zip(many.obs.split(4000), many.actions.split(4000), strict=True):
                    ours.step(obs, actions)

        found[f"{count} imagined steps"] = medians({"theirs": (imagined, 1), "ours": (our_imagined, 1)}, repeats)
    return found


def our_mbpo() -> MBPO:
    """MBPO that has collected its data."""
    kwargs = dict(activation_fn=nn.ReLU, layer_norm=False, world_model_kwargs=dict(termination="none"))
    model = MBPO("MlpPolicy", "HalfCheetah-v5", learning_starts=STEPS, buffer_size=STEPS, real_ratio=0.0, policy_kwargs=kwargs,
                 model_validation_fraction=HELD_OUT, model_fit_kwargs=dict(max_epochs=EPOCHS, patience=EPOCHS),
                 imagined_buffer_size=IMAGINED, seed=0, device="cpu")  # fmt: skip
    return model.learn(STEPS)


def our_cycle(model: MBPO, updates: int) -> dict[str, Callable[[], Any]]:
    def update() -> None:
        model._last_fit = model.num_timesteps  # no fit is due
        for _ in range(updates // 10):
            model.train(10, BATCH)

    return {"fit": lambda: model._fit_model(defaultdict(list)), "imagine": lambda: model._imagine(IMAGINED), "update": update}


def their_cycle(ours: MBPO, updates: int) -> dict[str, Callable[[], Any]]:
    """The same with mbrl-lib's parts, on the same data; as its ``mbpo.train`` calls them."""
    model, data = their_model(), ours.replay_buffer
    rng = np.random.default_rng(0)
    real, imagined = (ReplayBuffer(size, (S,), (A,), rng=rng) for size in (STEPS, IMAGINED))
    ends = np.zeros(STEPS, dtype=bool)
    columns = (data.observations, data.actions, data.next_observations, data.rewards)
    real.add_batch(*(column[:, 0].copy() for column in columns), ends, ends)
    assert ours.env is not None
    env, trainer = ModelEnv(ours.env, model, no_termination, None), ModelTrainer(model, optim_lr=1e-3)
    settings = dict(gamma=0.99, tau=0.005, alpha=0.2, policy="Gaussian", target_update_interval=1, device="cpu", lr=3e-4,
                    automatic_entropy_tuning=True, target_entropy=-float(A), hidden_size=256)  # fmt: skip
    agent = SACAgent(SAC(S, ours.action_space, SimpleNamespace(**settings)))

    def fit() -> None:
        train, validation = get_basic_buffer_iterators(real, BATCH, HELD_OUT, ensemble_size=7)
        model.update_normalizer(real.get_all())
        trainer.train(train, validation, num_epochs=EPOCHS, silent=True)

    def imagine() -> None:
        rollout_model_and_populate_sac_buffer(env, real, agent, imagined, True, 1, IMAGINED)

    def update() -> None:
        for number in range(updates):
            agent.sac_agent.update_parameters(imagined, BATCH, number, None, reverse_mask=True)

    return {"fit": fit, "imagine": imagine, "update": update}


def cycles(repeats: int, updates: int) -> dict[str, dict[str, float]]:
    """Fit, imagine and update, in this order, ours and theirs in turns."""
    model = our_mbpo()
    systems = {"theirs": their_cycle(model, updates), "ours": our_cycle(model, updates)}
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(repeats):
        for owner, stages in systems.items():
            for stage, call in stages.items():
                seconds[stage][owner].append(medians({stage: (call, 1)}, 1, warm_up=False)[stage])
            seconds["cycle"][owner].append(sum(seconds[stage][owner][-1] for stage in stages))
    found = {stage: {owner: median(times) for owner, times in of.items()} for stage, of in seconds.items()}
    fit = found.pop("fit")
    return {
        "epoch": {owner: time / EPOCHS for owner, time in fit.items()},
        f"MBPO cycle: {EPOCHS} epochs": fit,
        f"MBPO cycle: {IMAGINED} imagined transitions": found["imagine"],
        f"MBPO cycle: {updates} updates": found["update"],
        "MBPO cycle": found["cycle"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="of the single parts; of the cycle a third of them")
    parser.add_argument("--updates", type=int, default=2500, help="updates in a cycle")
    parser.add_argument("--embed", type=Path, help="put the table into this page, at its <!-- results:mbrl_speed -->")
    args = parser.parse_args()
    th.set_num_threads(1)
    th.manual_seed(0)
    found = {**parts(args.repeats), **cycles(max(args.repeats // 3, 1), args.updates)}
    table = [["what", "mbrl-lib", "ours", "ours / mbrl-lib", "limit"]]
    for what, seconds in found.items():
        theirs, ours = seconds["theirs"], seconds["ours"]
        times = [f"{1e3 * time:.1f} ms" if time < 1 else f"{time:.2f} s" for time in (theirs, ours)]
        table.append([what, *times, f"{ours / theirs:.2f}", LIMITS.get(what, "")])
    for row in table:
        print(("{:<42}" + "{:>16}" * 4).format(*row))
    note = " ".join(f"{name}={importlib.metadata.version(name)}" for name in ("torch", "mbrl", "numpy"))
    command = f"python benchmarks/mbrl_speed.py --repeats {args.repeats} --updates {args.updates}"
    with (RESULTS / "mbrl_speed.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*table, [command, note]])
    lines = [" | ".join(row) for row in [table[0], ["---"] * len(table[0]), *table[1:]]]
    text = "\n".join([f"<!-- made by: {command} | {note} -->", "", *(f"| {line} |" for line in lines)])
    (RESULTS / "mbrl_speed.md").write_text(text + "\n")
    if args.embed:
        embed(args.embed, "mbrl_speed", text)


if __name__ == "__main__":
    main()
