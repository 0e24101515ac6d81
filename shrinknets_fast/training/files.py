"""The folder of results: refused early where it cannot be written, and every file replaced in one piece."""

import os
from pathlib import Path

from .refusal import Refusal


def check_folder(out):
    """Refuse what is plainly no place for results; changes nothing."""
    nearest = Path(out).absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise Refusal(f"--out {out}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise Refusal(f"--out {out}: {nearest} is not writable")


def make_folder(out):
    """Create the folder and try a file in it: only that tells, for root and for network file systems."""
    folder = Path(out)
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Refusal(f"--out {out}: cannot be written: {error.strerror}") from error
    return folder


def replace(path, write):
    """``write(part)``, then put the part in its place: whoever reads ``path`` sees the old file or the new one."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        raise Refusal(f"--out {path.parent}: cannot write {path.name}: {' '.join(str(error).split())}") from error
    finally:
        part.unlink(missing_ok=True)


def replace_text(path, text):
    replace(path, lambda file: file.write(text.encode()))
