"""Laws: what holds for every variant and backend. Adding a variant never edits them."""
