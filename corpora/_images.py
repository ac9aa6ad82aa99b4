"""Images in rows of JSON Lines: the hub's image column, its bytes in base64."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np


def pixels(cell: Any, where: str) -> np.ndarray:
    """(height, width, 3) of uint8 from ``{"bytes": base64 of a PNG or JPEG}``. Raises ValueError that names ``where``."""
    from PIL import Image

    try:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(cell["bytes"]))).convert("RGB"))
    except Exception as error:  # PIL raises a dozen types for what is no image
        raise ValueError(f"{where}: no image in it ({type(error).__name__}: {error})") from None


def place(path: Path, number: int, column: str) -> str:
    """Where a cell stands, for people."""
    return f"{path}:{number}: column {column}"
