"""Pictures of sweeps: a function per figure, each with the table behind it, and a page that shows all."""

from batchsim.figures.draw import draw_figures
from batchsim.figures.report import write_report

__all__ = ["draw_figures", "write_report"]
