"""Observations, as opposed to computed costs: times, memory, the machine."""
