"""Questions asked of a program: one file a question."""
