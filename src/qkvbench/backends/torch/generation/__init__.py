"""Text generation: step by step, and by beam search."""
