"""The folder of results: refused early where it cannot be written, one run's at a time, every file replaced in one piece."""

import contextlib
import fcntl
import os
import warnings
from pathlib import Path

from .refusal import Refusal

PART = ".part"  # the end of the name of a file that is not there yet


def check_folder(out):
    """Refuse what is plainly no place for results; changes nothing."""
    nearest = Path(out).absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise Refusal(f"--out {out}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise Refusal(f"--out {out}: {nearest} is not writable")


@contextlib.contextmanager
def own_folder(out):
    """Make the folder and keep other runs out of it until the end; the kernel lets go of it however this process ends."""
    folder = Path(out)
    with refused_errors(out, "cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle, out)
        with refused_errors(out, "cannot be written"):
            clear(folder)
        yield folder
    finally:
        os.close(handle)


def lock(handle, out):
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Refusal(f"--out {out}: another run is writing there; wait for it, or give another --out") from error
    except OSError as error:  # some network file systems
        warnings.warn(f"--out {out} cannot be locked ({error.strerror}): a second run there would mix", stacklevel=2)


def clear(folder):
    """Try a file: only that tells, for root and for network file systems. What a killed run had begun to write goes."""
    probe = folder / f".probe{PART}"
    probe.touch()
    for part in folder.glob(f".*{PART}"):
        part.unlink()


@contextlib.contextmanager
def refused_errors(out, what):
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise Refusal(f"--out {out}: {what}: {reason}") from error


def replace(path, write):
    """``write(part)``, then put the part in its place: whoever reads ``path`` sees the old file or the new one, whole.

    On the disk before it is in its place, so that no crash of the machine leaves an empty file there.
    """
    part = path.with_name(f".{path.name}{PART}")
    with refused_errors(path.parent, f"cannot write {path.name}"):
        try:
            with part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def sync_folder(folder):
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot, and rename in order anyway
            os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path, text):
    replace(path, lambda file: file.write(text.encode()))
