"""From a dataset's fingerprint to a recipe in which every number has its reason.

The rules are those of nnU-Net's default planner (Isensee 2021, arXiv 1904.08128, and its published code) where they
fit volumes and maps alike; each reason says so where they are not.
"""

from tasks.planning.machine import Machine, this_machine
from tasks.planning.plan import Plan, make_plan

__all__ = ["Machine", "Plan", "make_plan", "this_machine"]
