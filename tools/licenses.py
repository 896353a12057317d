#!/usr/bin/env python3
"""Write docs/licenses.md, the list of the licenses of all packages in requirements.txt.

    tools/licenses.py

pip-licenses reads the licenses from the packages that are installed. Those that it cannot find there are given below.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from clq.errors import UserError
from clq.experiments.ablation import markdown_table
from clq.utils.cli import run_cli

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/licenses.md"
# Packages whose metadata names no license, or that are installed on other systems only, with where the license is from.
_BY_HAND = {
    "colorama": "BSD-3-Clause (on Windows only; its LICENSE.txt)",
    "cuda-toolkit": "NVIDIA proprietary (a package without files that names NVIDIA's libraries)",
    "pb1-detectron2": "Apache-2.0 (LICENSE of Detectron2)",
}
_HEADER = """# Licenses of the dependencies

The project itself is under the Apache License 2.0, see [LICENSE](../LICENSE). It contains none of the packages below,
which `make .venv` installs. `make licenses` writes this list: pip-licenses reads it from the packages that
requirements.txt names. NVIDIA's packages are needed on GPUs only, but torch's wheels for Linux depend on them.
`make sbom` writes the list of components with versions and checksums, as CycloneDX.

"""


def normalized(name: str) -> str:
    """A name of a package as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> list[str]:
    """Names of all packages in requirements.txt, for every Python and system."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return sorted({normalized(match[1]) for line in lines if (match := re.match(r"([A-Za-z0-9_.-]+)==", line))})


def licenses() -> dict[str, str]:
    """The license of each required package.

    Raises:
        UserError: the license of a package is not known.
    """
    command = [Path(sys.executable).with_name("pip-licenses"), "--python", sys.executable, "--with-system"]
    command += ["--format", "json", "--packages", *required()]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    known = {normalized(entry["Name"]): entry["License"] for entry in found if entry["License"] != "UNKNOWN"}
    known |= _BY_HAND
    if missing := [name for name in required() if name not in known]:
        raise UserError(f"{missing[0]}: its license is not known; read it in the package and add it to {__file__}.")
    return {name: known[name] for name in required()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    PAGE.write_text(_HEADER + markdown_table(["package", "license"], [list(pair) for pair in licenses().items()]))
    print(PAGE)


if __name__ == "__main__":
    run_cli(main)
