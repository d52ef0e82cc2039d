"""Runs that a run starts: machines, functions, and notebooks in kernels of their own."""
