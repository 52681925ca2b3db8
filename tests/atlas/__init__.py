"""Each layer of the atlas against the library that it is of."""
