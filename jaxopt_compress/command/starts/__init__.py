"""Configs to start from: `jaxopt-compress init` copies one of these files."""
