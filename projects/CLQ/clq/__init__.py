"""CLQ and its relatives for Detectron2. Importing the package registers the meta-architecture ``CLQ``."""

import sys

if "clq.doctor" not in sys.orig_argv:  # `python -m clq.doctor` has to run where the rest does not import
    from clq import compat  # noqa: F401  (first: it lets Detectron2 import)
    from clq.config import add_clq_config, setup_cfg
    from clq.engine.convert import convert_mmdet
    from clq.errors import UserError
    from clq.modeling.backbone import build_dense_resnet_fpn_backbone
    from clq.modeling.detector import CLQ

__all__ = ["CLQ", "UserError", "add_clq_config", "build_dense_resnet_fpn_backbone", "convert_mmdet", "setup_cfg"]
