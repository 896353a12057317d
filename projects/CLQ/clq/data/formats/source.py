"""Where a declared data set comes from: its format, its files, and which of its images."""

import hashlib
import json
import os
import re
from dataclasses import astuple, dataclass

from clq.errors import UserError, reason_of
from clq.utils.files import open_regular

FORMATS = {"coco": "a json file in COCO format", "voc": "a folder of Pascal VOC xml", "yolo": "a YOLO data set"}


@dataclass(frozen=True)
class Part:
    """A random part of a data set. An image is in it or not by a hash of its own name alone.

    Attributes:
        name: name of the part.
        shares: name and share of each part; the sum is at most 1.
        seed: number that makes another choice.
    """

    name: str
    shares: tuple[tuple[str, float], ...]
    seed: int = 0

    def holds(self, file_name: str) -> bool:
        """Whether an image is in this part: its folder and its suffix do not matter."""
        stem = os.path.splitext(os.path.basename(file_name))[0]
        hashed = hashlib.sha256(f"{self.seed}/{stem}".encode(errors="surrogateescape")).digest()
        position, start = int.from_bytes(hashed[:8], "big") / 2**64, 0.0
        for name, share in self.shares:
            if start <= position < start + share + 1e-9:  # so that shares such as 0.7, 0.2 and 0.1 leave no gap
                return name == self.name
            start += share
        return False


@dataclass(frozen=True)
class Source:
    """The source of a data set.

    Attributes:
        format: one of :data:`FORMATS`.
        path: its json file, its folder or its data.yaml; absolute.
        images: folder of its images; None where it follows from ``path``.
        split: name of the split in ImageSets, data.yaml or the folders; None for all images.
        part: random part of the images; None for all.
        names: names of the classes, for YOLO folders without a classes.txt.
        max_megapixels: limit on images whose size has to be read.
        key: config key that declares it.
    """

    format: str
    path: str
    images: str | None = None
    split: str | None = None
    part: Part | None = None
    names: tuple[str, ...] = ()
    max_megapixels: float = 90.0
    key: str = "DATASETS.SETS"

    @property
    def root(self) -> str:
        """Folder that the names of its images are relative to."""
        is_file = self.format == "coco" or self._is_yaml
        return self.images or (os.path.dirname(self.path) if is_file else self.path)

    @property
    def file_kind(self) -> str:
        """What its annotations are in, for messages."""
        return {"coco": "json", "voc": "xml", "yolo": "label file"}[self.format]

    @property
    def subject(self) -> str:
        """Its name in caches: the path, unless the same path is the source of other data sets."""
        plain = self.format == "coco" and self.part is None
        return self.path if plain else json.dumps(astuple(self))

    def check_path(self, name: str) -> None:
        """Checks that there is what the format needs.

        Args:
            name: name of the data set, for messages.

        Raises:
            UserError: there is nothing, or it looks like another format, which the message names.
        """
        kind = {"coco": "json", "voc": "folder", "yolo": "folder or data.yaml"}[self.format]
        if not os.path.exists(self.path):
            raise UserError(
                f"data set {name}: its {kind} {self.path} does not exist; put it there or correct {self.key}."
            )
        if self.images is not None and not os.path.isdir(self.images):
            raise UserError(
                f"data set {name}: its image folder {self.images} does not exist; put it there or correct {self.key}."
            )
        if os.path.isdir(self.path) == (self.format == "coco" or self._is_yaml):
            raise self.mistaken(name)

    @property
    def _is_yaml(self) -> bool:
        return self.format == "yolo" and self.path.lower().endswith((".yaml", ".yml"))

    def mistaken(self, name: str) -> UserError:
        """The error of a path that is not of its format, with the format that it looks like."""
        found = guess_format(self.path)
        what = f"data set {name}: {self.path} is {'a folder' if os.path.isdir(self.path) else 'a file'}"
        if found is not None and found != self.format:
            fix = f"name it under {found} in DATASETS.SETS"
            if found == "voc" and not os.path.isdir(self.path):
                what, fix = f"data set {name}: {self.path} is one Pascal VOC xml", "name its folder under voc"
            elif found == "coco" and os.path.isdir(self.path):
                fix = "name each json under coco"
            else:
                what += f" that looks like {FORMATS[found]}"
            return UserError(f"{what}, not {FORMATS[self.format]}; {fix}.")
        return UserError(f"{what}, but {self.format} needs {_NEEDS[self.format]}.")


_NEEDS = {
    "coco": "a json file; name the file",
    "voc": "the folder of its xml files, or the one with Annotations and JPEGImages",
    "yolo": "a data.yaml, or a folder with images and labels",
}


def guess_format(path: str) -> str | None:
    """The format that a file or folder looks like, one of :data:`FORMATS`; None if it looks like none of them."""
    if os.path.isdir(path):
        try:
            names = [name.lower() for name in os.listdir(path)]
        except OSError:
            return None
        if "annotations" in names or any(name.endswith(".xml") for name in names):
            return "voc"
        if {"data.yaml", "labels", "classes.txt"} & set(names):
            return "yolo"
        return "coco" if any(name.endswith(".json") for name in names) else None
    try:
        with open_regular(path) as f:
            beginning = f.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except (OSError, ValueError):
        return None
    if beginning.startswith((b"{", b"[")):
        return "coco"
    if re.match(rb"<annotation|<\?xml.*<annotation", beginning, re.DOTALL):
        return "voc"
    return "yolo" if re.search(rb"^(names|nc|train|val)\s*:", beginning, re.MULTILINE) else None


def unreadable(name: str, path: str, error: Exception) -> UserError:
    """The error of a file on which a whole data set depends."""
    return UserError(f"data set {name}: {path} cannot be read ({reason_of(error)}); write it again.")
