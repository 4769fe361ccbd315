"""What is done with a selection. No action knows why."""

from tithe.actions.attend import Attend
from tithe.actions.drop import Drop
from tithe.actions.evict import Evict
from tithe.actions.quantise import Quantise
from tithe.actions.shorten import Shorten

__all__ = ["Attend", "Drop", "Evict", "Quantise", "Shorten"]
