"""Studies carried out on engines: what is missing is run, and every result is kept at once."""
