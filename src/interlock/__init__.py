"""Interlock: post-training of reasoning models by reinforcement learning, across vendors' accelerators."""

__version__ = "0.1.0"
