"""Code that the backends share; it imports no framework."""
