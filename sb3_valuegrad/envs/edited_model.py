"""MuJoCo environments whose model is one of Gymnasium's with changes, made when the environment is."""

from typing import Any
from xml.etree import ElementTree

import mujoco
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv


class EditedModelEnv(MujocoEnv):
    """Compiles ``model_path`` after :meth:`_edit` has changed it. What is not changed stays Gymnasium's."""

    metadata = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]}  # noqa: RUF012 (Gymnasium's form)

    def _edit(self, model: ElementTree.Element) -> None:
        """Change the model in place."""
        raise NotImplementedError

    def _initialize_simulation(self) -> tuple[Any, Any]:
        root = ElementTree.parse(self.fullpath).getroot()
        self._edit(root)
        model = mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
        # As MujocoEnv: room for a picture as large as it was asked for.
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)


def find(model: ElementTree.Element, path: str) -> ElementTree.Element:
    """The element at an XPath, which must be there: if not, the model is not the one that the changes were written for.

    :raises ValueError: if it is not
    """
    found = model.find(path)
    if found is None:
        raise ValueError(f"Gymnasium's model has no {path!r}: this version of Gymnasium is too new, or too old")
    return found
