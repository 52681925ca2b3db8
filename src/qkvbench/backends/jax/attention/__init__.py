"""One attention layer, made from its plan."""
