"""Which layers of a program can go, and what they get and give."""
