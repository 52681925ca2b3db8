"""Sweeps: run what the store of a study lacks, on an engine, and store every result at once."""
