"""Beside the peers: what others' packages do, in environments of their own, against what Tithe does, in turns.

python -m benchmarks.peers [kvpress tomesd inseq captum quantised] [--envs DIR] [--quick] [--write]
"""
