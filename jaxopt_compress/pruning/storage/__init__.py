"""Weights stored without their zeros."""
