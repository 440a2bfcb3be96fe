"""Documents of each domain: one module per modality. A source is a callable `documents(seed) -> iterator`."""
