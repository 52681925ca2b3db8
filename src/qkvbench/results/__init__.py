"""Results: what a record holds, where it is kept, what a set of them says. No framework."""
