"""setup_cfg: the parts of a config that it completes after merging."""

import clq
import pytest
import torch
from clq.config import setup
from detectron2.data import DatasetCatalog

CPU = ["MODEL.DEVICE", "cpu"]


def test_a_config_survives_being_saved(write):
    entries = [{"name": "config_saved", "json": "a.json", "images": "b"}]
    cfg = clq.setup_cfg(None, ["DATASETS.COCO_JSON", entries, "MODEL.CLQ.ALIGN.NAME", "learned", *CPU])
    cfg.freeze()
    write(saved=cfg.dump())
    again = clq.setup_cfg("saved.yaml")
    assert again.MODEL.CLQ == cfg.MODEL.CLQ and again.DATASETS == cfg.DATASETS


@pytest.mark.parametrize("opts", [[], ["MODEL.CLQ.BOX.WEIGHT_BY", "alignment"]], ids=["file", "override"])
def test_a_value_that_was_renamed_is_accepted_with_a_warning_that_gives_its_name(opts, write, caplog):
    write(own="MODEL: {CLQ: {BOX: {WEIGHT_BY: " + ("iou" if opts else "alignment") + "}}}\nVERSION: 2")
    assert clq.setup_cfg("own.yaml", [*opts, *CPU]).MODEL.CLQ.BOX.WEIGHT_BY == "alignment_metric"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("MODEL.CLQ.BOX.WEIGHT_BY alignment: this value is now called alignment_metric")


@pytest.mark.parametrize("gpus, asked, given", [(0, "cuda", "cpu"), (0, "cuda:1", "cpu"), (2, "cuda:1", "cuda:1")])
def test_cuda_becomes_the_cpu_only_where_there_is_none(monkeypatch, gpus, asked, given):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert given == clq.setup_cfg(None, ["MODEL.DEVICE", asked]).MODEL.DEVICE


def test_a_gpu_beyond_the_last_is_refused(monkeypatch, refusal):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "MODEL.DEVICE cuda:2: this machine has 2 GPU(s)" in refusal(None, ["MODEL.DEVICE", "cuda:2"])


@pytest.mark.parametrize("name", ["gpu"])
def test_a_device_that_does_not_exist_is_refused(name, refusal):
    assert f"MODEL.DEVICE {name}: no such device; use cuda" in refusal(None, ["MODEL.DEVICE", name])


def test_data_sets_on_the_command_line_are_written_as_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = clq.setup_cfg(None, ["DATASETS.COCO_JSON", "[{name: on_the_line, json: b.json, images: c}]", *CPU])
    absolute = {"name": "on_the_line", "json": str(tmp_path / "b.json"), "images": str(tmp_path / "c")}
    assert [absolute] == cfg.DATASETS.COCO_JSON
    assert "on_the_line" in DatasetCatalog
    with pytest.raises(clq.UserError, match=r"DATASETS\.COCO_JSON .*write '\[\{name: a"):
        clq.setup_cfg(None, ["DATASETS.COCO_JSON", "[{name: a", *CPU])


def test_a_finisher_gets_each_config_before_it_is_returned(monkeypatch):
    monkeypatch.setattr(setup, "_finishers", [])
    setup.finish_configs_with(lambda cfg: setattr(cfg, "OUTPUT_DIR", f"{cfg.OUTPUT_DIR}/finished"))
    for _ in range(2):
        assert clq.setup_cfg(None, ["OUTPUT_DIR", "here", *CPU]).OUTPUT_DIR == "here/finished"
