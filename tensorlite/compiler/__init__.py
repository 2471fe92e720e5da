"""Passes from Graph to Graph. No device is named here but through what its backend lowers."""
