"""The command line, `jaxopt-compress`: runs a config, or writes one to start from."""
