"""The edge of every command: whatever a file, a model, a machine or a user can raise ends here, as one sentence."""

import errno
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from omegaconf.errors import OmegaConfBaseException

SHOW_TRACEBACK = "HYDRA_FULL_ERROR"  # Hydra's own variable, with Hydra's meaning
KEPT = "what is finished is kept, and the same command goes on from there"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# what is raised on purpose, or says in words what is wrong; of others a reader may want to know where they come from
SPOKEN = (ValueError, OSError, ImportError, OmegaConfBaseException)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Print what the block raises as one sentence, and exit with status 1; after Ctrl-C with 130.

    With HYDRA_FULL_ERROR=1 the traceback is shown instead.
    """
    if os.environ.get(SHOW_TRACEBACK) == "1":
        yield
        return
    os.environ[SHOW_TRACEBACK] = "1"  # so that Hydra leaves its errors to us, and prints no tracebacks of its own
    try:
        yield
    except KeyboardInterrupt:
        _say(f"interrupted: {KEPT}")
        sys.exit(130)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's last flush raises it again
        sys.exit(0)
    except Exception as error:
        _say(sentence_of(error))
        sys.exit(1)
    finally:
        os.environ.pop(SHOW_TRACEBACK, None)


def shows_help(arguments: Sequence[str], text: str | None) -> bool:
    """Print the text of a command's help where the arguments ask for it; return whether they do."""
    asked = any(argument in ("-h", "--help") for argument in arguments)
    if asked:
        print((text or "").strip())
    return asked


@contextmanager
def named(what: str) -> Iterator[None]:
    """Raise what the block raises of its own making, without words for a reader, as a ValueError that names `what`."""
    try:
        yield
    except SPOKEN:
        raise
    except Exception as error:
        raise ValueError(f"{what}: {sentence_of(error)}") from error


def visible(text: str) -> str:
    """Return the text with control characters escaped: logs and manifests may be others', and terminals obey them."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _say(sentence: str) -> None:
    sentence = visible(sentence)
    if logging.getLogger().handlers:
        logging.getLogger("sae_outliers").error("%s", sentence)
    else:
        print(sentence, file=sys.stderr)


def sentence_of(error: BaseException) -> str:
    """Return in one line what is wrong and, where it is the machine's fault, what to do."""
    if _is_full_disk(error):
        return f"{_where(error)}the disk is full: make room, then repeat the command; {KEPT}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return (
            f"out of memory ({_one_line(error) or 'on the CPU'}): lower data.batch_size, train.batch_size or "
            "sae.n_features, or use a larger machine"
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{_where(error)}{error.strerror}: is it yours, and is results_dir= a folder that can be written to?"
    if isinstance(error, OSError) and error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return f"{_where(error)}{error.strerror}: a file stands where a folder should be, or the reverse"
    if isinstance(error, SPOKEN) or type(error).__module__.startswith("hydra."):
        return _spoken(error)
    return f"{type(error).__name__}: {_one_line(error) or 'no more is known'} ({SHOW_TRACEBACK}=1 shows where)"


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(os.strerror(number) in str(error) for number in FULL)  # safetensors and torch have errors of their own


def _where(error: BaseException) -> str:
    filename = getattr(error, "filename", None)
    return f"{filename}: " if filename else ""


def _spoken(error: BaseException) -> str:
    """The message without what OmegaConf and Hydra add of their own types and of their own ways out."""
    text = str(error)
    if isinstance(error, OmegaConfBaseException):
        text = text.splitlines()[0].removeprefix("ValueError raised while resolving interpolation: ")
    elif type(error).__module__.startswith("hydra."):
        text = text.partition("Config search path:")[0]
        if isinstance(error.__cause__, OmegaConfBaseException):
            text = f"{text} {str(error.__cause__).splitlines()[0]}"
    return " ".join(text.split()) or type(error).__name__


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
