"""Interlock: reinforcement learning for reasoning models, across vendors' accelerators."""

__version__ = "0.1.0"
