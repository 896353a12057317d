"""The config: every key that this project adds, and the one way to make a config.

The keys are defined in ``model_keys.py``, ``loss_keys.py``, ``training_keys.py`` and ``input_keys.py``, each under its
full path and with its default, its values and its meaning. ``docs/CONFIG.md`` is generated from them. Only builders
(``from_config``, ``build_...``) and checks read keys; parts take plain arguments.
"""

from clq.config.setup import finish_configs_with, limit_json, setup_cfg
from clq.config.table import KEYS, add_clq_config, check_keys

__all__ = ["KEYS", "add_clq_config", "check_keys", "finish_configs_with", "limit_json", "setup_cfg"]
