"""The steps of a study: fits, merges, baselines, evaluation, front. Run again, it goes on where it stopped.

Importing this room loads no torch: the work is done in processes of their own.
"""

from cfg_distill.study.run import run_steps

__all__ = ["run_steps"]
