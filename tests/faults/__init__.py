"""Faults: what may happen to a run, a store or a request, and what is promised when it does."""
