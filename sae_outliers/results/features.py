"""What features.parquet says of each feature of a run's SAE."""

from enum import IntEnum


class Fate(IntEnum):
    ALIVE = 0
    NEVER_SELECTED = 1  # positive on some token, but never among the k largest
    NEVER_POSITIVE = 2  # dead by ReLU; the published dead-by-TopK includes these
