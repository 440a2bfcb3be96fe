"""Data sources, one module per modality. A source is a callable that maps a seed to an iterator of documents."""
