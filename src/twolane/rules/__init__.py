"""Pure decisions: no I/O, no clock, no randomness. Each file alone answers one question."""
