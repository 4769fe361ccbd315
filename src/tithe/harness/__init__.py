"""Tithe inside the evaluation harnesses that papers report with: lm-evaluation-harness and lmms-eval.

``python -m tithe.harness lm_eval ...`` and ``python -m tithe.harness lmms_eval ...`` are those programs' own command
lines with the model ``tithe`` known to them; nothing here is imported unless a harness asks for it.
"""
