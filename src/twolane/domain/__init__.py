"""Nouns: frozen dataclasses and values. Depends on nothing but `errors`."""
