"""Write a report on detections: what their scores mean, which errors they make, and what could be won.

    clq report output/inference/cells_val/coco_instances_results.json cells_val.json --output report
    clq report a.json annotations.json b.json --names ATSS CLQ --images cells/images --output comparison

The first file has the detections in COCO's results format, the second the annotations that they are compared with, and
further files are detections of other runs on the same images, which are shown side by side. An evaluation writes
annotations.json beside its results where it has left images out; compare with that file then. The folder receives
report.html, its pictures, metrics.json, and thresholds.json for `clq predict --thresholds`.
"""

import argparse
import os
from collections.abc import Sequence

from detectron2.utils.logger import setup_logger

from clq.errors import UserError
from clq.evaluation.report.analysis import PRECISION, analyse, evaluate_coco
from clq.evaluation.report.candidates import read_candidates
from clq.evaluation.report.headroom import NMS_THRESH
from clq.evaluation.report.run import read_run
from clq.evaluation.report.truth import read_annotations
from clq.evaluation.report.write import MOST_RUNS, write_report
from clq.utils.cli import positive, run_cli


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("results", metavar="RESULTS.json", help="detections, as an evaluation writes them")
    add("annotations", metavar="ANNOTATIONS.json", help="COCO json with the ground truth")
    add("more", nargs="*", default=[], metavar="MORE.json", help="detections of other runs on the same images")
    add("--output", default="report", metavar="FOLDER", help="folder for the report (default: %(default)s)")
    add("--names", nargs="+", metavar="NAME", help="name of each run (default: from the names of files and folders)")
    add("--images", metavar="FOLDER", help="folder of the images, of which the best and the worst are drawn")
    add(
        "--precision",
        type=float,
        default=PRECISION,
        help="precision of thresholds_precision.json (default: %(default)s)",
    )
    add("--max-dets", type=positive, default=100, help="TEST.DETECTIONS_PER_IMAGE of the runs (default: %(default)s)")
    add("--nms-thresh", type=float, default=NMS_THRESH, help="NMS threshold of the runs (default: %(default)s)")
    add(
        "--candidates",
        nargs="+",
        default=[],
        metavar="FILE",
        help="candidates before NMS of each run (coco_candidates.json, see TEST.REPORT_CANDIDATES)",
    )
    return parser.parse_args(argv)


def _check(args: argparse.Namespace) -> None:
    runs = 1 + len(args.more)
    if runs > MOST_RUNS:
        raise UserError(f"{runs} results files: pictures can tell {MOST_RUNS} apart; give fewer.")
    for option in ("precision", "nms_thresh"):
        if not 0 < getattr(args, option) <= 1:
            raise UserError(f"--{option.replace('_', '-')} {getattr(args, option)}: must be above 0 and at most 1.")
    if args.names and len(args.names) != runs:
        raise UserError(f"--names: {len(args.names)} names for {runs} results files; give each a name.")
    if args.names and len(set(args.names)) < runs:
        raise UserError("--names: two runs have the same name; choose different ones.")
    if args.candidates and len(args.candidates) != runs:
        raise UserError(f"--candidates: {len(args.candidates)} files for {runs} results files; give one for each.")
    if args.images and not os.path.isdir(args.images):
        raise UserError(f"--images {args.images}: no such folder; give the folder of the images.")


def run_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of the paths, without suffix, that differ from each other."""
    parts = [os.path.splitext(os.path.abspath(path))[0].split(os.sep) for path in paths]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{paths[0]}: is given twice; give each results file once.")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report and prints where it is."""
    args = _parse_args(argv)
    _check(args)
    setup_logger(name="clq")
    truth, paths, analyses = read_annotations(args.annotations), [args.results, *args.more], []
    for i, (name, path) in enumerate(zip(args.names or run_names(paths), paths, strict=True)):
        run = read_run(name, path, truth, args.max_dets)
        candidates = read_candidates(args.candidates[i], truth) if args.candidates else None
        evaluation = evaluate_coco(run, args.max_dets)
        settings = {"precision": args.precision, "nms_thresh": args.nms_thresh, "candidates": candidates}
        analyses.append(analyse(run, evaluation, **settings))
    print(write_report(analyses, args.output, args.images))
    return 0


if __name__ == "__main__":
    run_cli(main)
