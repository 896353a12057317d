"""CLQ and its relatives for Detectron2. Importing the package registers the meta-architecture ``CLQ``."""

from clq import compat  # noqa: I001  (first: it lets Detectron2 import)
from clq.checkpoint_mmdet import convert_mmdet
