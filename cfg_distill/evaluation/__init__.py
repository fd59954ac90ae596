"""Systems, models and how they are sampled, on held-out prompts: values a prompt, paired comparisons, the front."""

from cfg_distill.evaluation.compare import difference, height_above
from cfg_distill.evaluation.evaluate import evaluate
from cfg_distill.evaluation.figure import draw_front, front_figure
from cfg_distill.evaluation.system import System
from cfg_distill.evaluation.table import front_table

__all__ = ["System", "difference", "draw_front", "evaluate", "front_figure", "front_table", "height_above"]
