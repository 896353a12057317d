"""The files of a Pascal VOC data set: xml files, images, and which of them belong to a split."""

import os
import re
from collections import Counter
from dataclasses import dataclass

from clq.data.formats.files import IMAGES, File, digest, file_at, find_files, read_lines
from clq.data.formats.findings import Findings, shown
from clq.data.formats.source import Source, unreadable
from clq.errors import UserError

_ANNOTATIONS, _IMAGES = ("Annotations", "annotations"), ("JPEGImages", "images", "Images")


@dataclass(frozen=True)
class VocFiles:
    """The files of a Pascal VOC data set.

    Attributes:
        folder: folder of the xml files.
        xml: the xml files by their names without the suffix.
        image_folder: folder of the images.
        images: names of the images in it, by their names without the suffix.
        listed: lines of the file of the split with their numbers; None if all xml files are used.
        split_file: path of the file of the split.
        digest: digest of all files; another one means that something has changed.
    """

    folder: str
    xml: dict[str, File]
    image_folder: str
    images: dict[str, list[str]]
    listed: list[tuple[int, str]] | None
    split_file: str | None
    digest: str


def find_voc(source: Source, name: str) -> VocFiles:
    """Lists the files of a Pascal VOC data set.

    Args:
        source: its source.
        name: its name, for messages.

    Raises:
        UserError: there are no xml files, or the split does not exist.
    """
    own = os.path.basename(source.path).lower() == "annotations"
    root = os.path.dirname(source.path) if own else source.path
    folder = source.path if own else _subfolder(root, _ANNOTATIONS) or root
    image_folder = source.images or _subfolder(root, _IMAGES) or folder
    xml = find_files(folder, (".xml",))
    if not xml:
        raise source.mistaken(name)
    images: dict[str, list[str]] = {}
    found = find_files(image_folder, IMAGES)
    for image in found:
        images.setdefault(os.path.splitext(image.name)[0], []).append(image.name)
    split_file, listed, stamp = None, None, None
    if source.split is not None:
        split_file = os.path.join(root, "ImageSets", "Main", f"{source.split}.txt")
        listed, stamp = _read_split(split_file, source.split, name), file_at(split_file)
    stamps = [folder, xml, image_folder, [image.name for image in found], stamp]
    by_stem = {os.path.splitext(file.name)[0]: file for file in xml}
    return VocFiles(folder, by_stem, image_folder, images, listed, split_file, digest(stamps))


def _subfolder(root: str, names: tuple[str, ...]) -> str | None:
    return next((path for n in names if os.path.isdir(path := os.path.join(root, n))), None)


def _read_split(path: str, split: str, name: str) -> list[tuple[int, str]]:
    if not os.path.isfile(path):
        folder = os.path.dirname(path)
        known = [f.name.removesuffix(".txt") for f in find_files(folder, (".txt",))] if os.path.isdir(folder) else []
        have = f"there are {', '.join(known)}" if known else "use split: {train: 0.8, val: 0.2} to divide it"
        raise UserError(f"data set {name}: its split {split} needs the file {path}, which does not exist; {have}.")
    try:
        return [(number, line) for number, line in enumerate(read_lines(path), 1) if line]
    except (OSError, ValueError) as e:
        raise unreadable(name, path, e) from e


def choose_xml(files: VocFiles, source: Source, findings: Findings) -> list[str]:
    """The names of the xml files that belong to the data set, without their suffix, in order."""
    if files.listed is None:
        orphans = sorted(files.images.keys() - files.xml.keys())
        if orphans and source.part is None:
            first = files.images[orphans[0]][0]
            findings.note("images have no xml file, and are not used", first, len(orphans))
        stems = list(files.xml)
    else:
        stems = []
        for number, line in files.listed:
            stem, sign = line, ""
            if stem not in files.xml and (match := re.fullmatch(r"(.+?)\s+(-1|0|1)", line)):
                stem, sign = match.groups()
            if stem not in files.xml:
                stem = os.path.splitext(stem)[0]
            if stem not in files.xml:
                what = f"{files.split_file}: line {number} names {shown(line)}, which has no xml file in {files.folder}"
                findings.fault("images of the split have no xml file", what, image=line)
            elif sign != "-1":  # of a list of the images with and without one class
                stems.append(stem)
        twice, count = next(iter(Counter(stems).most_common(1)), ("", 1))
        if count > 1:
            findings.note("images are listed in the split more than once, and are used once", twice)
    part = source.part
    return sorted({stem for stem in stems if part is None or part.holds(f"{stem}.xml")})
