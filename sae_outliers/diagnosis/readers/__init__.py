"""Trained SAEs from files of other libraries and ours: one module a format, which registers itself."""
