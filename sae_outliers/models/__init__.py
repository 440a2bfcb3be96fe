"""Pretrained networks: one module per way of loading. Each `load` returns a `Backbone`."""
