"""What a cache layer holds: layouts and codecs behind one small contract."""

from tithe.seams.stores.base import Store, View
from tithe.seams.stores.dense import Dense
from tithe.seams.stores.packed import Packing
from tithe.seams.stores.paged import Paged
from tithe.seams.stores.quantised import Quantised

__all__ = ["Dense", "Packing", "Paged", "Quantised", "Store", "View"]
