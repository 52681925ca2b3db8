"""Blocks, architectures and their weights."""
