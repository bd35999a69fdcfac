"""What a program computes from its parameters alone."""
