"""Pictures, for those who have matplotlib: it is an extra, and is imported when the first picture is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING = 'Pictures are drawn by matplotlib, which is missing: pip install "sb3-valuegrad[plots]"'


def axes(ax: Axes | None, title: str, xlabel: str, ylabel: str) -> Axes:
    """Labelled axes to draw into.

    :param ax: the caller's; None: those of a new figure of pyplot's
    :raises ImportError: if there is no matplotlib, naming the extra that brings it
    """
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError(MISSING) from error
        ax = pyplot.subplots(layout="constrained")[1]
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return ax


def new_figure() -> Figure:
    """A figure for a file: without pyplot, whose figures stay in memory, and which may open windows during training.

    :raises ImportError: if there is no matplotlib, naming the extra that brings it
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(MISSING) from error
    return Figure(layout="constrained")
