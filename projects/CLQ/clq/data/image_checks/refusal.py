"""What is raised for a file that cannot be used as an image, and the limits that files of all formats have."""

MIB = 1 << 20
# Metadata that Pillow keeps in memory, and the parts of a file, each of which takes a step in Python.
MAX_METADATA, MAX_PARTS = 64 * MIB, 500_000


class Refusal(Exception):
    """A file cannot be used as an image.

    Args:
        reason: what is wrong.
        fix: what to do next.
    """

    def __init__(self, reason: str, fix: str = "replace or remove it"):
        super().__init__(reason)
        self.reason, self.fix = reason, fix


def too_many_parts(what: str) -> Refusal:
    """What to raise for a file with more than :data:`MAX_PARTS` of something."""
    return Refusal(f"has too many {what}", "write it again")


def check_metadata(size: int) -> None:
    """Refuses a file with more than :data:`MAX_METADATA` bytes of metadata.

    Raises:
        Refusal: it has.
    """
    if size > MAX_METADATA:
        raise Refusal(f"has more than {MAX_METADATA // MIB} MiB of metadata", "remove its metadata")


def check_pixels(width: int, height: int, max_pixels: float) -> None:
    """Refuses an image with more pixels than the limit.

    Raises:
        Refusal: it has.
    """
    if width * height > max_pixels:
        raise Refusal(
            f"has {width} x {height} pixels, more than INPUT.MAX_MEGAPIXELS {max_pixels / 1e6:g}",
            "raise that if you trust the file",
        )
