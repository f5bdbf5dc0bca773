"""zstd, an extra of the package: known to this module alone."""

from __future__ import annotations

from typing import Any

from evsync.errors import ConfigurationError, DecodingError

LEVEL = 6
MOST_BYTES = 1 << 30
"""No segment unpacks to more: a damaged or hostile one shall not take all memory."""


def compress(content: bytes) -> bytes:
    """One zstd frame that says how large its content is. Raises ConfigurationError where zstd is not installed."""
    found: bytes = _zstandard().ZstdCompressor(level=LEVEL, write_content_size=True).compress(content)
    return found


def decompress(frame: bytes) -> bytes:
    """The content of a frame. Raises DecodingError; ConfigurationError where zstd is not installed."""
    zstandard = _zstandard()
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= MOST_BYTES:
            raise DecodingError(f"a zstd frame says that it holds {size:,} bytes; at most {MOST_BYTES:,} are read")
        found: bytes = zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as e:
        raise DecodingError(f"{len(frame):,} bytes are no zstd frame: {e}") from e
    return found


def check_installed() -> None:
    """Raise ConfigurationError where zstd is not installed: better at the start than at the first backup."""
    _zstandard()


def _zstandard() -> Any:
    try:
        import zstandard  # noqa: PLC0415  (an extra)
    except ImportError as e:
        raise ConfigurationError(
            "the archive needs zstd to write and to read segments: pip install 'evsync[zstd]'"
        ) from e
    return zstandard
