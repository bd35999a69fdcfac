"""Attention of a program, found by what it computes, and given to a kernel."""
