"""Gimbal's trainer. Nothing in here imports Qt or `ui`."""
