"""The faults behind defects.py: each replaces one operator of the simulated device.

A fault is called with the `run` that it disturbs and an operator on tensors of the CPU, and returns
what the chip would. It names operators as autograd leaves them: torch has taken apart what it can.
"""
