"""Backends: the kinds of device. Each registers itself when it is imported."""
