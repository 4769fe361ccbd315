"""What a cache layer holds: layouts and codecs behind one small contract."""

from tithe.seams.stores.base import Store, View
from tithe.seams.stores.dense import Dense
from tithe.seams.stores.paged import Paged

__all__ = ["Dense", "Paged", "Store", "View"]
