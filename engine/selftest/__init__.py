"""Checks a machine by itself: kernels, pools, the engine's tokens beside mlx-lm's, and how fast both are."""
