"""Channels, layers, experts and tokens that go: what they are worth, which stay."""
