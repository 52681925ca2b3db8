"""The parts that claims are made of: figures, models, scales, evidence, and tests."""
