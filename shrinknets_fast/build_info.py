"""How this build was made, as CMake wrote it down."""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).parent / "build_info.json"


def build_info() -> dict[str, str]:
    """Versions, architectures and flags; ``cuda_version`` is empty where the CPU library was built alone."""
    found: dict[str, str] = json.loads(FILE.read_text())
    return found
