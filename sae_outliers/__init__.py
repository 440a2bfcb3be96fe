"""Measure activation outliers and the sparse-autoencoder features that they kill (arXiv 2605.31518)."""

__version__ = "0.1.0"
