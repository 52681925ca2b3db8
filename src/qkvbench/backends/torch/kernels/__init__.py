"""Kernels, each of which declares what it can run."""
