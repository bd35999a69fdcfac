"""A network of other sizes: what is taken, what it costs, how its model is built."""
