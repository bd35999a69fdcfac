"""One step of training: its state, its loss, and how one follows another."""
