"""Workloads to be timed, and the kernels that a profiler saw in them."""
