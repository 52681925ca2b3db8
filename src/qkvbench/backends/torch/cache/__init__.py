"""The key/value cache: the tensors that a plan caches, and nothing else."""
