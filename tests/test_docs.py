"""Every Python block of the README and of docs/ runs, and every model that it builds trains; links lead somewhere.

A page is read from top to bottom: its blocks share one namespace. A block right below the line ``<!-- not run -->``
is left out.
"""

import re
import runpy
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from sb3_valuegrad.algorithms.base import ValueGradientAlgorithm

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?P<skip><!-- not run -->\n+)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
STEPS = 60


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line of its first statement, code) of each Python block that is run."""
    text = page.read_text()
    found = [match for match in BLOCK.finditer(text) if not match["skip"]]
    return [(text.count("\n", 0, match.start("code")) + 1, match["code"]) for match in found]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few steps, short episodes, small batches; files are written to a temporary folder."""
    learn, make = ValueGradientAlgorithm.learn, gym.make

    def learn_little(self: Any, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        self.learning_starts, self.batch_size = STEPS // 2, 8
        if self.model_fit_freq is not None:
            self.model_fit_kwargs, self.rollouts_per_step = {"max_epochs": 1}, 1
        return learn(self, min(total_timesteps, STEPS), *args, **kwargs)

    def make_short(*args: Any, **kwargs: Any) -> gym.Env:
        return make(*args, **{"max_episode_steps": 20, **kwargs})

    monkeypatch.setattr(ValueGradientAlgorithm, "learn", learn_little)
    monkeypatch.setattr(gym, "make", make_short)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_blocks_run(page: Path, tiny: None) -> None:
    if re.search(r"-v[45]\b", "".join(code for _, code in blocks(page))):
        pytest.importorskip("mujoco")
    namespace: dict[str, Any] = {"__name__": page.stem}
    trained: set[int] = set()
    models = []
    for line, code in blocks(page):
        # The empty lines put the page's own line numbers into a traceback.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
        model = namespace.get("model")
        if isinstance(model, ValueGradientAlgorithm) and id(model) not in trained:
            models.append(model)  # kept, so that no other gets its id
            trained.add(id(model))
            updates = model._n_updates
            model.learn(STEPS)
            assert model._n_updates > updates, f"{page}:{line}: the model did not train"


def test_systems_has_a_call_for_every_row() -> None:
    text = (ROOT / "docs/systems.md").read_text()
    rows = re.findall(r"^\| \[(?P<name>[^\]]+)\]", text, re.MULTILINE)
    sections = {part.split("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert rows
    for name in rows:
        assert re.search(r"^model = [A-Z]+\(", sections[name], re.MULTILINE), name


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            # GitHub's anchors: lower case, spaces to hyphens, punctuation dropped.
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page}: {target} is none of {sorted(anchors)}"


def test_the_known_reward_is_the_environments() -> None:
    example = runpy.run_path(str(ROOT / "examples/known_reward.py"))
    assert example["largest_difference"](steps=250) < 1e-4
