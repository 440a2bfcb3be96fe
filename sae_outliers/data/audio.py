"""Sounds from a folder of audio files: samples of one channel, with their rate."""

import random
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sae_outliers.data.base import matching_files

WITH_SOUNDFILE = (".flac", ".ogg", ".mp3", ".aiff", ".aif")
PCM = {1: "u1", 2: "<i2", 4: "<i4"}  # by bytes per sample

Sound = tuple[np.ndarray, int]  # float32 [samples] between -1 and 1, and samples per second


@dataclass(frozen=True)
class AudioFolder:
    """A source of the sounds in files below a folder, each whole.

    Attributes:
        folder: the folder, or a file, in which .wav files, and .flac, .ogg, .mp3 and .aiff with the package soundfile,
            are found at any depth.
    """

    folder: str

    def __call__(self, seed: int) -> Iterator[Sound]:
        """Return an iterator over the sounds, in an order determined by `seed`. Raise FileNotFoundError without any."""
        files = matching_files(self.folder, (".wav", *WITH_SOUNDFILE), 0)
        random.Random(seed).shuffle(files)
        return map(read_sound, files)


def read_sound(path: Path) -> Sound:
    """Return the sound in a file, its channels averaged.

    Raises:
        ValueError: the file cannot be read, or is no wav and soundfile is not installed (named, with the remedy).
    """
    if find_spec("soundfile"):
        import soundfile

        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} cannot be read as sound: {error}") from error
        return samples.mean(1), rate
    if path.suffix.lower() != ".wav":
        raise ValueError(
            f"{path} is read with the package soundfile: run `pip install soundfile`, or convert it to wav"
        )
    return _read_wav(path)


def _read_wav(path: Path) -> Sound:
    try:
        with wave.open(str(path)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} cannot be read as wav ({error}): `pip install soundfile` reads more kinds") from error
    if width not in PCM:
        raise ValueError(
            f"{path} has {8 * width} bits per sample, which need the package soundfile: `pip install soundfile`"
        )
    whole = content[: len(content) // (width * channels) * width * channels]
    values = np.frombuffer(whole, np.dtype(PCM[width])).astype(np.float32)
    centred = (values - 128) / 128 if width == 1 else values / 2 ** (8 * width - 1)
    return centred.reshape(-1, channels).mean(1), rate
