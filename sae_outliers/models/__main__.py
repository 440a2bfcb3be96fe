"""python -m sae_outliers.models: see listing.py."""

import sys

from sae_outliers.models.listing import main
from sae_outliers.utils.boundary import one_sentence

if __name__ == "__main__":
    with one_sentence():
        main(sys.argv[1:])
