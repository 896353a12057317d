"""The files of a YOLO data set: images, label files and the names of the classes."""

import os
from dataclasses import dataclass, field

from clq.data.formats.files import IMAGES, File, digest, file_at, find_files, read_lines
from clq.data.formats.source import Source, guess_format, unreadable
from clq.data.formats.yolo_yaml import read_data_yaml
from clq.errors import UserError

_YAMLS = "data.yaml", "data.yml", "dataset.yaml"


@dataclass
class YoloFiles:
    """The files of a YOLO data set.

    Attributes:
        names: names of the classes.
        keypoint_values: as in :class:`~clq.data.formats.yolo_yaml.DataYaml`.
        labels: path of the label file of each image, by the path of the image; the file need not exist.
        existing: the label files that exist, by their paths.
        whole: whether all images of the folders belong to the data set, so that each label file needs an image.
        depends_on: files that say which images there are and what the classes are called.
        images: the image files.
    """

    names: tuple[str, ...]
    keypoint_values: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    existing: dict[str, File] = field(default_factory=dict)
    whole: bool = True
    depends_on: list[File] = field(default_factory=list)
    images: list[File] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Digest of all files; another one means that something has changed."""
        return digest([self.names, self.depends_on, self.images, sorted(self.labels), sorted(self.existing.values())])

    def add_folder(self, folder: str, labels: str) -> None:
        """Adds the images of a folder, whose label files are in another one under the same names."""
        for image in find_files(folder, IMAGES):
            path = os.path.join(folder, image.name)
            self.images.append(image._replace(name=path))
            self.labels[path] = os.path.join(labels, os.path.splitext(image.name)[0] + ".txt")
        for label in find_files(labels, (".txt",)) if os.path.isdir(labels) else []:
            if os.path.basename(label.name) != "classes.txt":
                path = os.path.join(labels, label.name)
                self.existing[path] = label._replace(name=path)

    def add_list(self, path: str) -> None:
        """Adds the images that a text file names, one in each line, relative to its folder.

        Raises:
            OSError, ValueError: the file cannot be read.
        """
        self.whole = False
        self.depends_on.append(file_at(path))
        for line in read_lines(path):
            if line:
                image = os.path.normpath(os.path.join(os.path.dirname(path), line))
                folder, name = os.path.split(image)
                self.labels[image] = label = os.path.join(_labels_of(folder), os.path.splitext(name)[0] + ".txt")
                self.images.append(file_at(image))
                if os.path.isfile(label):
                    self.existing[label] = file_at(label)


def find_yolo(source: Source, name: str) -> YoloFiles:
    """Lists the files of a YOLO data set.

    Args:
        source: its source.
        name: its name, for messages.

    Raises:
        UserError: there are no images, none has a label file, or the classes have no names.
    """
    described = os.path.isfile(source.path), [os.path.join(source.path, yaml) for yaml in _YAMLS]
    path = source.path if described[0] else next(filter(os.path.isfile, described[1]), None)
    found = _find_folders(source, name) if path is None or source.names else _find_described(path, source, name)
    if not found.images:
        raise (
            source.mistaken(name)
            if path is None
            else UserError(f"data set {name}: there are no images in the folders that {path} names; correct it.")
        )
    if not found.existing:
        image, label = next(iter(found.labels.items()))
        raise UserError(
            f"data set {name}: none of its {len(found.labels)} images has a label file; that of {image} would be "
            f"{label}."
        )
    return found


def _find_described(path: str, source: Source, name: str) -> YoloFiles:
    """Lists the files that a data.yaml describes."""
    content = read_data_yaml(path, source, name)
    found = YoloFiles(content.names, content.keypoint_values, depends_on=[file_at(path)])
    for entry in content.images:
        if os.path.isdir(entry):
            found.add_folder(entry, _labels_of(entry))
            continue
        try:
            found.add_list(entry)
        except (OSError, ValueError) as e:
            raise unreadable(name, entry, e) from e
    return found


def _find_folders(source: Source, name: str) -> YoloFiles:
    """Lists the files of folders without a data.yaml."""
    root = source.path
    if source.split is not None and os.path.isdir(os.path.join(root, source.split, "images")):
        root = os.path.join(root, source.split)  # train/images, train/labels
    images = source.images or _inside(root, "images")
    labels = _inside(root, "labels")
    names, classes = _class_names(source, [source.path, root, labels], name)
    if root == source.path and source.split is not None:  # images/train, labels/train
        images, labels = os.path.join(images, source.split), os.path.join(labels, source.split)
        if not os.path.isdir(images):
            raise UserError(
                f"data set {name}: its split {source.split} needs the folder {images}, which does not exist; use "
                "split: {train: 0.8, val: 0.2} to divide the images."
            )
    found = YoloFiles(names, depends_on=classes)
    found.add_folder(images, labels)
    return found


def _inside(root: str, name: str) -> str:
    path = os.path.join(root, name)
    return path if os.path.isdir(path) else root


def _class_names(source: Source, folders: list[str], name: str) -> tuple[tuple[str, ...], list[File]]:
    """The names of the classes, and the file that they are from."""
    if source.names:
        return source.names, []
    for path in (os.path.join(folder, "classes.txt") for folder in folders):
        if os.path.isfile(path):
            try:
                names = tuple("\n".join(read_lines(path)).strip("\n").split("\n"))
            except (OSError, ValueError) as e:
                raise unreadable(name, path, e) from e
            if not all(names):
                raise UserError(f"data set {name}: {path} has an empty line or none; it needs one name in each line.")
            return names, [file_at(path)]
    if guess_format(source.path) == "voc" or not find_files(source.path, (".txt",)):
        raise source.mistaken(name)
    raise UserError(
        f"data set {name}: the classes in {source.path} have no names; write names: [a, b] in DATASETS.SETS, or add a "
        "classes.txt or data.yaml."
    )


def _labels_of(folder: str) -> str:
    """The folder of the label files of a folder of images: its last ``images`` becomes ``labels``, if that exists."""
    head, found, tail = f"{folder}/".rpartition("/images/")
    labels = os.path.normpath(f"{head}/labels/{tail}")
    return labels if found and os.path.isdir(labels) else folder
