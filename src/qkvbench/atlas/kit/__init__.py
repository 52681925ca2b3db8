"""The rows of the atlas as values: a form, the layers of a library that have it, their weights."""
