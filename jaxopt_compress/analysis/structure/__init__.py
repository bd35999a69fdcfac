"""Which channels of a program go together."""
