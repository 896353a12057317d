"""Show a detector's scores, boxes and feature alignment on images that are dropped on a local web page.

    clq app output/sample
    clq app CLQ/clq_R_50_FPN_1x --weights clq_r50.pth --port 8000

The page is for this machine only unless --host says otherwise. It needs the package gradio.
"""

import argparse
from collections.abc import Sequence

import clq
from clq.errors import UserError


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", help="folder of a training, checkpoint, or config: what clq.load takes")
    parser.add_argument("--weights", help="file of weights, if the detector is a config")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at (default: %(default)s)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE ...")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until it is interrupted."""
    args = _parse_args(argv)
    try:
        from clq.app.page import Page
    except ModuleNotFoundError as e:
        if e.name != "gradio":
            raise
        raise UserError("clq app: needs the package gradio; run pip install gradio.") from e
    predictor = clq.load(args.detector, args.weights, opts=[*args.opts, "MODEL.CLQ.COMPILE", False])
    blocks = Page(predictor, f"CLQ: {args.detector}").build()
    try:
        blocks.launch(server_name=args.host, server_port=args.port, share=False, footer_links=[])
    except OSError as e:
        raise UserError(f"--host {args.host} --port {args.port}: {e}; choose another.") from e
    return 0
