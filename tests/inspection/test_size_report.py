import re

import clq
import numpy as np
import pytest
import yaml
from clq.inspection import size_report
from clq.inspection.positives import Pyramid
from clq.inspection.proposals import GOAL, Search
from clq.inspection.size_report import bin_edges, config_lines, report
from detectron2.data import DatasetCatalog, MetadataCatalog


def records_of(record, side, spread=1.2, size=(320, 320), count=12):
    """Images with 5 objects each, apart from each other, of sides between ``side / spread`` and ``side * spread``."""
    rng = np.random.default_rng(0)
    cells = np.array([(0, 0), (0, 200), (200, 0), (200, 200), (100, 100)])
    records = []
    for i in range(count):
        corner, sides = cells + rng.uniform(0, 12, (5, 2)), side * spread ** rng.uniform(-1, 1, (5, 2))
        boxes = np.concatenate([corner, corner + sides], axis=1).clip(0, size[0])
        records.append(record(boxes.tolist(), size=size, name=str(i)))
    return records


@pytest.fixture
def register():
    name = "sizes_of_this_test"

    def add(records):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).thing_classes = ["thing"]
        return name

    yield add
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def as_config(tmp_path, overrides):
    """CLQ's config with the lines of the report pasted into it."""
    base = clq.configs.path("CLQ/clq_R_50_FPN_1x")
    (tmp_path / "pasted.yaml").write_text("\n".join([f"_BASE_: {base}", *config_lines(overrides)]))
    return clq.setup_cfg(str(tmp_path / "pasted.yaml"), ["MODEL.DEVICE", "cpu"])


def test_bins_have_anchors_in_their_middle():
    pyramid = Pyramid(("p3", "p4"), (8, 16), 32, 8.0, 0.0, 9)  # 64 and 128 pixels
    root = 2**0.5
    assert bin_edges(pyramid, 50, 100) == pytest.approx([64 / root, 64 * root, 128 * root])
    assert bin_edges(pyramid, 5, 100) == pytest.approx([0, 16 / root, 32 / root, 64 / root, 64 * root, 128 * root])
    assert bin_edges(pyramid, 50, 1000)[-2:] == pytest.approx([128 * root, np.inf])


def test_config_lines_are_the_yaml_of_the_keys():
    overrides = {
        "MODEL.CLQ.IN_FEATURES": ["p2", "p3"],
        "MODEL.FPN.IN_FEATURES": ["res2"],
        "INPUT.MIN_SIZE_TRAIN": (640,),
        "MODEL.CLQ.ANCHOR_SCALE": 6.0,
    }
    assert yaml.safe_load("\n".join(config_lines(overrides))) == {
        "INPUT": {"MIN_SIZE_TRAIN": [640]},
        "MODEL": {"CLQ": {"IN_FEATURES": ["p2", "p3"], "ANCHOR_SCALE": 6.0}, "FPN": {"IN_FEATURES": ["res2"]}},
    }


def test_small_objects_get_a_proposal_whose_lines_give_the_shares_that_it_states(config, record, tmp_path):
    records = records_of(record, side=10)
    size = ["INPUT.MIN_SIZE_TRAIN", (320,), "INPUT.MIN_SIZE_TEST", 320]
    search = Search(config(*size), records)
    best, _ = search.run()
    assert search.now.few > 0.3 and best.few < search.now.few / 3
    unchanged = dict(zip(size[::2], size[1::2], strict=True))
    pasted = Search(as_config(tmp_path, {**unchanged, **best.overrides}), records)
    assert (pasted.now.few, pasted.now.none, pasted.now.in_range) == (best.few, best.none, best.in_range)
    assert pasted.now.num_locations == best.num_locations


def test_enlarged_images_of_large_objects_may_keep_their_own_size(config, record):
    best, _ = Search(config(), records_of(record, side=70)).run()  # 320 pixels, enlarged to 800
    assert best.overrides["INPUT.MIN_SIZE_TRAIN"] == (320,) and best.overrides["INPUT.MIN_SIZE_TEST"] == 320
    assert best.few <= GOAL


def test_settings_that_fit_stay(config, record):
    cfg = config("INPUT.MIN_SIZE_TRAIN", (320,))
    search = Search(cfg, records_of(record, side=70))
    best, alternatives = search.run()
    assert best is search.now and alternatives[0] is search.now


def test_anchors_move_to_the_sizes_of_the_objects(config, record):
    """Objects of 32 pixels have enough positives, but the smallest anchor has 64."""
    search = Search(config("INPUT.MIN_SIZE_TRAIN", (320,)), records_of(record, side=32))
    best, _ = search.run()
    assert search.now.few <= GOAL and search.now.in_range < 0.1
    assert best.overrides == {"MODEL.CLQ.ANCHOR_SCALE": 4.0} and best.in_range == 1


def test_a_level_that_no_object_needs_is_left_out(record):
    opts = ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", (), "DATASETS.TEST", ()]
    search = Search(clq.setup_cfg("sample/clq_sample", opts), records_of(record, side=70))
    best, _ = search.run()
    assert search.now.pyramid.levels[0] == "p2" and best.pyramid.levels[0] == "p3"
    assert best.num_locations < 0.3 * search.now.num_locations


def test_the_report_is_short_and_its_shares_are_of_all_objects(config, record, register):
    text = report(config("DATASETS.TRAIN", (register(records_of(record, side=20, spread=6)),)))
    lines = text.splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) <= 120
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("size"))
    end = next(i for i, line in enumerate(lines) if line.startswith("Width / height"))
    shares = [float(re.search(r"([\d.]+)%", line)[1]) for line in lines[start + 1 : end]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert "Sizes of 60 objects in all 12 images" in lines[0]


def test_the_report_says_that_it_is_of_a_sample(config, record, register, monkeypatch):
    monkeypatch.setattr(size_report, "MAX_IMAGES", 5)
    cfg = config("DATASETS.TRAIN", (register(records_of(record, side=70)),))
    assert report(cfg).startswith("Sizes of 25 objects in 5 of 12 images")


def test_other_models_have_one_line(config):
    assert "RetinaNet" in report(config(name="comparison/retinanet_R_50_FPN_1x"))


def test_a_training_set_without_objects_is_refused(config, record, register):
    with pytest.raises(clq.UserError, match="no image has an object"):
        report(config("DATASETS.TRAIN", (register([record([])]),)))
