"""The plan of a fit before it runs: memory, work and the least time of a step, from a dry run without weights."""

from cfg_distill.planning.fit import Fit, fit_of
from cfg_distill.planning.machines import GPUS, Device, device_of, problems_of_device
from cfg_distill.planning.plan import Plan, Split, plan_of
from cfg_distill.planning.table import table

__all__ = ["GPUS", "Device", "Fit", "Plan", "Split", "device_of", "fit_of", "plan_of", "problems_of_device", "table"]
