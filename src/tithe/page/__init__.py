"""The report: results, cards and token-by-token views in one HTML file that needs no network and no server."""

from __future__ import annotations

from tithe.page.data import CardRow, Case, ImageCase, LayerView, Picked, Report, TextCase, View
from tithe.page.html import render, write
from tithe.page.pictures import Picture

__all__ = [
    "CardRow",
    "Case",
    "ImageCase",
    "LayerView",
    "Picked",
    "Picture",
    "Report",
    "TextCase",
    "View",
    "render",
    "write",
]
