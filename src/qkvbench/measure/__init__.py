"""Observed, never computed: times, memory, the machine."""
