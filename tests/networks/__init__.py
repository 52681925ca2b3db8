"""Laws of whole networks; every shape and argument type of the package is checked on the way."""
