"""RGB images: whole ones of a folder or a dataset, and crops of a few photographs that two packages install."""

import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sae_outliers.data.base import some
from sae_outliers.data.hub import HubColumn
from sae_outliers.utils.package_cache import package_folder

log = logging.getLogger(__name__)

# What these packages install as data also holds charts, silhouettes, logos and text. Of the stereo pair of a
# motorcycle one view is enough.
SCIKIT_IMAGE = (
    "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png coins.png "
    "grass.png gravel.png hubble_deep_field.jpg ihc.png microaneurysms.png moon.png motorcycle_left.png "
    "retina.jpg rocket.jpg"
)
SCIKIT_LEARN = "china.jpg flower.jpg"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def packaged_photographs() -> list[Path]:
    """The 19 photographs. Raises ModuleNotFoundError if one of the two packages is not installed."""
    skimage = package_folder("skimage", "scikit-image")
    sklearn = package_folder("sklearn", "scikit-learn")
    files = [skimage / "data" / name for name in SCIKIT_IMAGE.split()]
    return files + [sklearn / "datasets" / "images" / name for name in SCIKIT_LEARN.split()]


def photographs_in(folder: Path) -> list[Path]:
    """The image files anywhere below a folder. Raises FileNotFoundError if there is none."""
    files = sorted(path for path in folder.expanduser().rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no image file ({', '.join(sorted(SUFFIXES))}) in {folder}")
    return files


@dataclass(frozen=True)
class ImageFolder:
    """Every image below a folder once and whole, such as those of ImageNet in its folders of classes.

    Attributes:
        folder: where they are; `.jpg`, `.jpeg`, `.png` and `.webp` files count.
    """

    folder: str

    def __call__(self, seed: int) -> Iterator[Image.Image]:
        """The images in an order that `seed` sets.

        Raises FileNotFoundError if there is none, ValueError if none can be read.
        """
        files = photographs_in(Path(self.folder))
        random.Random(seed).shuffle(files)
        return some(readable((str(file), file) for file in files), f"no image below {self.folder} can be read")


@dataclass(frozen=True, kw_only=True)
class HubImages(HubColumn):
    """Whole images in a column of a dataset. In the buffer they are files still: 1000 take about 0.1 GB."""

    column: str = "image"
    buffer: int = 1000

    def __call__(self, seed: int) -> Iterator[Image.Image]:
        """The images, shuffled. Raises ValueError if the column holds none."""
        values = HubColumn.__call__(self, seed)
        files = ((f"image {number} of {self.dataset}", file_in(value)) for number, value in enumerate(values))
        return some(readable(files), f"no image in column {self.column} of {self.dataset} can be read")


def file_in(value: Any) -> BytesIO | str:
    """What `datasets` holds of an image, {bytes, path}, as something that Pillow opens."""
    if not isinstance(value, dict) or not {"bytes", "path"} <= value.keys():
        raise ValueError(f"the column holds {type(value).__name__} and no images: name another by data.source.column=")
    return BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"]


def readable(files: Iterable[tuple[str, Path | BytesIO | str]]) -> Iterator[Image.Image]:
    """The images in RGB. One that cannot be read is left out, with a warning that names it."""
    for name, file in files:
        try:
            with Image.open(file) as image:
                whole = image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            log.warning("%s is left out, for it cannot be read: %s", name, error)
            continue
        yield whole


class Photographs:
    """A source of RGB images: round after round, one crop of each photograph in an order shuffled anew.

    Args:
        folder: where the photographs are; None for those that come with packages.
        crops: rounds, that is crops of each photograph.
        smallest: side of the smallest crop, as a fraction of the photograph's shorter side. Sides are drawn
            evenly between that and the whole.
    """

    def __init__(self, folder: str | None = None, crops: int = 200, smallest: float = 0.3) -> None:
        self.files = packaged_photographs() if folder is None else photographs_in(Path(folder))
        self.crops = crops
        self.smallest = smallest

    def __call__(self, seed: int) -> Iterator[Image.Image]:
        random = np.random.default_rng(seed)
        for _ in range(self.crops):
            for i in random.permutation(len(self.files)):
                with Image.open(self.files[i]) as image:
                    yield random_crop(image.convert("RGB"), random, self.smallest)


def random_crop(image: Image.Image, random: np.random.Generator, smallest: float) -> Image.Image:
    """A square somewhere in the image, mirrored half of the time."""
    side = max(1, round(min(image.size) * random.uniform(smallest, 1)))
    left, top = (int(random.integers(extent - side + 1)) for extent in image.size)
    crop = image.crop((left, top, left + side, top + side))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop
