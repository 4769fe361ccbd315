"""Public contract suites: every method and every host through the same checks, and the masked oracle behind them."""

from tithe.check.host import check_host
from tithe.check.method import check_method
from tithe.check.oracle import dense_logits

__all__ = ["check_host", "check_method", "dense_logits"]
