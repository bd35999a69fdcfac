"""Growth: a large network starts from a small one."""
