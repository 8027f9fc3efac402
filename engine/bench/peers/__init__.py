"""Other engines for MLX."""
