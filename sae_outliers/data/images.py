"""RGB images: whole ones from a folder or a dataset, or crops of photographs that two packages contain."""

import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sae_outliers.data.base import require_nonempty
from sae_outliers.data.hub import HubColumn
from sae_outliers.data.reading import reading
from sae_outliers.utils.package_cache import package_folder

log = logging.getLogger(__name__)

# A selection, because the packages' sample images include charts, silhouettes, logos and text. Only one view of the
# motorcycle stereo pair is used.
SCIKIT_IMAGE = (
    "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png coins.png "
    "grass.png gravel.png hubble_deep_field.jpg ihc.png microaneurysms.png moon.png motorcycle_left.png "
    "retina.jpg rocket.jpg"
)
SCIKIT_LEARN = "china.jpg flower.jpg"
SUFFIXES = {".bmp", ".gif", ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp"}


def packaged_photographs() -> list[Path]:
    """Return the files of the 19 photographs. Raise ModuleNotFoundError if a package is not installed."""
    skimage = package_folder("skimage", "scikit-image")
    sklearn = package_folder("sklearn", "scikit-learn")
    files = [skimage / "data" / name for name in SCIKIT_IMAGE.split()]
    return files + [sklearn / "datasets" / "images" / name for name in SCIKIT_LEARN.split()]


def photographs_in(folder: Path) -> list[Path]:
    """Return the image files below a folder, at any depth. Raise FileNotFoundError if there are none."""
    files = sorted(path for path in folder.expanduser().rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no image file ({', '.join(sorted(SUFFIXES))}) in {folder}")
    return files


@dataclass(frozen=True)
class ImageFolder:
    """A source of the whole images below a folder, such as ImageNet with a subfolder per class.

    Attributes:
        folder: the folder, in which images (of `SUFFIXES`) are found at any depth; of several frames the first is read.
    """

    folder: str

    def __call__(self, seed: int) -> Iterator[Image.Image]:
        """Return an iterator over the images, in an order determined by `seed`.

        Raise FileNotFoundError if there are none, ValueError if none can be read.
        """
        files = photographs_in(Path(self.folder))
        random.Random(seed).shuffle(files)
        images = readable((str(file), file) for file in files)
        return require_nonempty(images, f"no image below {self.folder} can be read")


@dataclass(frozen=True, kw_only=True)
class HubImages(HubColumn):
    """A source of whole images from a column of a dataset; the buffer holds encoded files: 1000 take about 0.1 GB."""

    column: str = "image"
    buffer: int = 1000

    def __call__(self, seed: int) -> Iterator[Image.Image]:
        """Return an iterator over the shuffled images. Raise ValueError if the column contains none."""
        values = HubColumn.__call__(self, seed)
        files = ((f"image {i} of {self.dataset}", encoded_image(value)) for i, value in enumerate(values))
        return require_nonempty(readable(files), f"no image in column {self.column} of {self.dataset} can be read")


def encoded_image(value: Any) -> BytesIO | str:
    """Return an image that `datasets` holds as {bytes, path} in a form that Pillow opens."""
    if not isinstance(value, dict) or not {"bytes", "path"} <= value.keys():
        raise ValueError(f"the column contains {type(value).__name__}, not images: name another by data.source.column=")
    return BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"]


def readable(files: Iterable[tuple[str, Path | BytesIO | str]]) -> Iterator[Image.Image]:
    """Yield the images in RGB. Skip one that cannot be read, with a warning that names it."""
    for name, file in files:
        try:
            with Image.open(file) as image:
                whole = as_rgb(image)
        # Pillow raises SyntaxError for damaged PNG chunks
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            log.warning("%s is skipped because it cannot be read: %s", name, error)
            continue
        yield whole


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB, values beyond 8 bits scaled by the least number of bits that holds all of the image.

    Pillow's own conversion clips them at 255. Cameras and microscopes store 10, 12 or 14 bits in 16.
    """
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(f"it has values from {values.min():g} to {values.max():g}: convert it to 8 bits")
    if values.max() <= 1 and image.mode == "F":
        scale = 1.0  # by convention, floats are fractions
    else:
        bits = next(bits for bits in (8, 10, 12, 14, 16, 32) if values.max() < 2**bits or bits == 32)
        scale = 2.0**bits - 1
    return Image.fromarray(np.round(values / scale * 255).astype(np.uint8)).convert("RGB")


class Photographs:
    """A source of random crops: in each round, one crop of every photograph, in a new random order.

    Args:
        folder: where the photographs are; None: those of the two packages.
        crops: rounds, and thus crops of each photograph.
        smallest: side of the smallest crop, as a fraction of the photograph's shorter side. Sides are uniformly
            distributed between that and the whole.
    """

    def __init__(self, folder: str | None = None, crops: int = 200, smallest: float = 0.3) -> None:
        self.files = packaged_photographs() if folder is None else photographs_in(Path(folder))
        self.crops = crops
        self.smallest = smallest

    def __call__(self, seed: int) -> Iterator[Image.Image]:
        rng = np.random.default_rng(seed)
        for _ in range(self.crops):
            for i in rng.permutation(len(self.files)):
                with reading(self.files[i]), Image.open(self.files[i]) as image:
                    yield random_crop(as_rgb(image), rng, self.smallest)


def random_crop(image: Image.Image, rng: np.random.Generator, smallest: float) -> Image.Image:
    """Return a random square of the image, mirrored with probability 0.5."""
    side = max(1, round(min(image.size) * rng.uniform(smallest, 1)))
    left, top = (int(rng.integers(extent - side + 1)) for extent in image.size)
    crop = image.crop((left, top, left + side, top + side))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
