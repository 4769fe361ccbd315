"""Choosing for a model and its work: which method, at which budget, with which parameters, costs least for its drop."""

from tithe.pick.constraints import Constraints
from tithe.pick.search import Limits, Picked, pick

__all__ = ["Constraints", "Limits", "Picked", "pick"]
