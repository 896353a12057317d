"""Pascal VOC: a folder of xml files, as COCO json.

Coordinates in the xml count pixels from 1 and include both ends, as in VOC itself: a box from xmin to xmax covers
``xmin - 1 <= x < xmax``. The image of an xml file is the one with the same name; if there is none, the one that its
``filename`` names. Objects that are ``difficult`` become crowds, because VOC's evaluation and MMDetection ignore them
too: they are not trained on, and detections in them are no mistakes. ``truncated``, parts and polygons are not read.

The reader of ``supervision`` (0.31) is not used: it decodes every image, orders the classes by their first occurrence,
which differs between splits, takes images without an xml file for images without objects, reads neither ImageSets nor
``difficult``, and ends at the first fault.
"""

import os
from collections import Counter
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import Element

from clq.data.formats.files import find_files
from clq.data.formats.findings import Findings, Places, shown
from clq.data.formats.source import Source
from clq.data.formats.voc_files import VocFiles, choose_xml, find_voc
from clq.data.formats.voc_xml import XmlError, name_of, read_box, read_xml
from clq.data.headers import Header, read_headers
from clq.errors import UserError


def read_voc(source: Source, findings: Findings, *, all_classes: bool) -> dict:
    """Reads a Pascal VOC data set.

    Args:
        source: its source.
        findings: receives what is found.
        all_classes: whether the classes are those of all xml files, so that all splits agree, rather than only those
            of the files that belong to the data set.

    Returns:
        What a json in COCO format would hold. Images are in the order of their names, and categories too.

    Raises:
        UserError: as :func:`find_voc`, or no xml file has its image.
    """
    files = find_voc(source, findings.name)
    reader = _Reader(files, source, findings)
    for stem in choose_xml(files, source, findings):
        reader.read(stem)
    reader.add_sizes()
    if not reader.images and reader.homeless:
        raise UserError(
            f"data set {findings.name}: none of its {reader.homeless} xml files in {files.folder} has its image in "
            f"{files.image_folder}; name the folder of the images under images."
        )
    whole = files.listed is None and source.part is None
    others = frozenset() if whole or not all_classes else _all_names(files.folder, files.digest)
    names = sorted(others | reader.names.keys())
    if not names:
        raise UserError(f"data set {findings.name}: its xml files in {files.folder} have no object with a name.")
    return reader.to_coco(names)


@lru_cache(maxsize=8)  # the splits of one data set need it, each of them more than once
def _all_names(folder: str, digest: str) -> frozenset[str]:
    """Names of the objects in all xml files of a folder, whose content ``digest`` identifies."""
    names = set()
    for file in find_files(folder, (".xml",)):
        try:
            names |= {name_of(element) for element in read_xml(os.path.join(folder, file.name)).objects}
        except XmlError:  # reported by whoever reads the split that it belongs to
            continue
    return frozenset(names - {""})


class _Reader:
    """Makes images and annotations of xml files."""

    def __init__(self, files: VocFiles, source: Source, findings: Findings):
        self._files, self._source, self._findings = files, source, findings
        self._base = os.path.relpath(files.image_folder, source.root)
        self._places = findings.places = Places("object")
        self._unsized: list[dict] = []
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.names: Counter[str] = Counter()
        self.homeless = 0  # xml files without an image

    def read(self, stem: str) -> None:
        """Reads one xml file."""
        path = os.path.join(self._files.folder, self._files.xml[stem].name)
        try:
            content = read_xml(path)
        except XmlError as e:
            name = self._name(self._files.images.get(stem, [f"{stem}.jpg"])[0])
            self._findings.fault("xml files cannot be used", f"{path}: {e}", image=name)
            return
        image = self._find_image(stem, content.filename, path)
        if image is None:
            return
        record: dict[str, Any] = {"id": len(self.images) + 1, "file_name": self._name(image)}
        if content.size is None:
            self._unsized.append(record)
            self._findings.note("xml files have no size, which is read from the image", path)
        else:
            record["width"], record["height"] = content.size
        self.images.append(record)
        for number, element in enumerate(content.objects, 1):
            self._add_object(element, record, path, number)

    def _name(self, image: str) -> str:
        return os.path.normpath(os.path.join(self._base, image))

    def _find_image(self, stem: str, filename: str, path: str) -> str | None:
        """The image of an xml file; None, with a fault, if there is none."""
        last = filename.replace("\\", "/").split("/")[-1]
        images, folder = self._files.images, os.path.dirname(stem)
        candidates = images.get(stem, [])
        for other in (os.path.join(folder, last), last):
            if not candidates and last:
                candidates = images.get(os.path.splitext(other)[0], []) or images.get(other, [])
        if len(candidates) > 1:  # a.jpg and a.png
            candidates = [c for c in candidates if os.path.basename(c) == last] or candidates
        if len(candidates) == 1:
            return candidates[0]
        self.homeless += not candidates
        if candidates:
            kind, what = "xml files have several images", f"may describe {' or '.join(candidates)}; remove all but one"
        else:
            kind, what = "xml files have no image", f"has no image {stem}.* in {self._files.image_folder}"
            what += f", nor {last}" if last else ""
        image = self._name(candidates[0] if candidates else last or f"{stem}.jpg")
        self._findings.fault(kind, f"{path}: {what}", image=image)
        return None

    def _add_object(self, element: Element, image: dict, path: str, number: int) -> None:
        name = name_of(element)
        difficult = (element.findtext("difficult") or "0").strip()
        box = read_box(element)
        fault = box if isinstance(box, str) else None
        if not name:
            fault = "has no name"
        elif difficult not in ("0", "1"):
            fault = f"has difficult {shown(difficult)}; it must be 0 or 1"
        if fault is not None or isinstance(box, str):
            what, item = f"{path}: object {number} {fault}", f"{path}: object {number}"
            self._findings.fault("objects in xml files cannot be used", what, image=image["file_name"], annotation=item)
            return
        if difficult == "1":
            kind = "objects are difficult; they are not trained on, and evaluation ignores them"
            self._findings.note(kind, f"{path}: object {number}")
        if box[0] < 0 or box[1] < 0:
            kind = "boxes begin before 1, where coordinates of Pascal VOC begin; they may be off by a pixel"
            self._findings.note(kind, f"{path}: object {number}")
        self.names[name] += 1
        record = {"id": self._places.add(path, number), "image_id": image["id"], "category_id": name}
        self.annotations.append({**record, "bbox": box, "area": box[2] * box[3], "iscrowd": int(difficult)})

    def add_sizes(self) -> None:
        """Reads the sizes of images whose xml has none. Images that cannot be read are left out."""
        paths = [os.path.join(self._source.root, record["file_name"]) for record in self._unsized]
        headers = read_headers(self._source.root, paths, self._source.max_megapixels) if paths else []
        gone = set()
        for record, path, header in zip(self._unsized, paths, headers, strict=True):
            if isinstance(header, Header):
                record["width"], record["height"] = header.width, header.height
            else:
                gone.add(record["id"])
                self._findings.fault("files cannot be used", f"image {path} {header}", image=record["file_name"])
        if gone:
            self.images = [image for image in self.images if image["id"] not in gone]
            self.annotations = [a for a in self.annotations if a["image_id"] not in gone]

    def to_coco(self, names: list[str]) -> dict:
        """The content, with the classes of these names."""
        ids = {name: i for i, name in enumerate(names, 1)}
        for a in self.annotations:
            a["category_id"] = ids[a["category_id"]]
        categories = [{"id": i, "name": name} for name, i in ids.items()]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}
