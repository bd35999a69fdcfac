"""The noun, the verb, the clock, the map. Imports jax only."""
