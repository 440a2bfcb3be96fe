"""Prompts for models that make images, put together from lists: 3,600 that need no download."""

import random
from collections.abc import Iterator
from itertools import product

STYLES = (
    "a photograph of", "a close-up photograph of", "an aerial photograph of", "a black and white photograph of",
    "an oil painting of", "a watercolour of", "a pencil drawing of", "a poster of", "a 3D rendering of",
)  # fmt: skip
SUBJECTS = (
    "a red fox", "an old fishing boat", "two children with kites", "a steam locomotive", "a bowl of ripe peaches",
    "a glass greenhouse", "a street musician with a violin", "a flock of cranes", "a wooden chair", "a tall lighthouse",
    "a market stall with vegetables", "an elephant and her calf", "a stack of books", "a mountain bicycle",
    "a woman reading a letter", "a stone bridge", "a sleeping cat", "an astronaut", "a field of sunflowers",
    "a crowded tram", "a chess board", "a snow-covered cabin", "a coral reef", "a bakery window", "a grey horse",
)  # fmt: skip
SETTINGS = (
    "at dawn", "in heavy rain", "under a full moon", "in a quiet village", "by the sea", "in the desert",
    "in front of a brick wall", "on a foggy morning", "in autumn", "at a busy station", "in a white studio",
    "on top of a hill", "in the evening sun", "beside a frozen lake", "in a large city at night", "in a garden",
)  # fmt: skip


class Captions:
    """A style, a subject and a setting: each combination once, in an order that the seed sets."""

    def __call__(self, seed: int) -> Iterator[str]:
        captions = [" ".join(parts) for parts in product(STYLES, SUBJECTS, SETTINGS)]
        random.Random(seed).shuffle(captions)
        return iter(captions)
