"""Results: records, the store, statistics and the view of a study. No framework."""
