"""python -m sae_outliers.models: see listing.py."""

from sae_outliers.models.listing import main

if __name__ == "__main__":
    main()
