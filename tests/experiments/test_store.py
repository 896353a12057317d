import json

import pytest
from clq.evaluation.matches import average_precision
from clq.experiments.runs import DONE, Run
from clq.experiments.store import Store

ATSS, CLQ = "configs/ATSS/atss_R_50_FPN_1x.yaml", "configs/CLQ/clq_R_50_FPN_1x.yaml"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.fixture
def trained(monkeypatch):
    """Stands for the trainings, which tests of tools/ablate.py run: the folders of those that were started."""
    started = []

    def train(run, threads, gpu):
        started.append(run.folder.name)
        if "broken" in run.folder.name:
            return False
        results = run.folder / "inference/shapes_val/coco_instances_results.json"
        results.parent.mkdir(parents=True)
        results.write_text(json.dumps([{"image_id": 1, "category_id": 7, "bbox": [1, 2, 30, 40], "score": 0.5}]))
        (run.folder / DONE).touch()
        return True

    monkeypatch.setattr(Run, "train", train)
    return started


def test_a_study_goes_on_where_it_was_stopped(tiny, tmp_path, run, script, capsys, trained):
    store = tmp_path / "kept"
    argv = ["--config-file", tiny, "--store", store, "--jobs", 2, "--variants", f"ATSS={ATSS}"]
    opts = ["--opts", "SOLVER.MAX_ITER", 2, "MODEL.CLQ.SCORE_THRESH", 0.001]
    others = ["broken=MODEL.CLQ.TOPK 7", f"C L Q={CLQ} MODEL.CLQ.TOPK 5"]
    assert run("tools/study.py", *argv, others[0], "--seeds", 3, "--output", tmp_path / "first", *opts) == 1
    out = capsys.readouterr().out
    assert "0 of 2 runs are in" in out and "broken_seed3: failed, see" in out
    assert [path.name for path in store.iterdir()] == ["ATSS_seed3.npz"]
    assert sorted(trained) == ["ATSS_seed3", "broken_seed3"]

    # The folders of the trainings are gone; what was kept is not trained again.
    assert run("tools/study.py", *argv, others[1], "--seeds", 3, 3, "--output", tmp_path / "second", *opts) == 0
    out = capsys.readouterr().out
    assert "1 of 2 runs are in" in out and out.count("started") == 1
    assert sorted(path.name for path in store.iterdir()) == ["ATSS_seed3.npz", "C_L_Q_seed3.npz"]
    assert trained[2:] == ["C_L_Q_seed3"]

    metrics = json.loads((tmp_path / "kept.json").read_text())
    rows = metrics["rows"]
    assert list(rows) == ["ATSS", "C L Q"]
    settings = f"{tiny} {CLQ} MODEL.CLQ.TOPK 5 SOLVER.MAX_ITER 2 MODEL.CLQ.SCORE_THRESH 0.001"
    assert rows["C L Q"]["settings"] == settings
    for name, runs in Store(store).matches().items():
        (ap,) = average_precision(runs[3])
        assert rows[name]["seeds"]["3"]["AP"] == pytest.approx(ap, abs=1e-4)
    assert script("tools/zoo.py").study(tmp_path / "kept.json").startswith("## kept\n")


@pytest.fixture
def refused(tiny, tmp_path, run, capsys):
    """``refused(*variants)``: what the tool says when it refuses to begin."""

    def refuse(*variants):
        words = ["--config-file", tiny, "--store", tmp_path / "kept", "--output", tmp_path / "output"]
        assert run("tools/study.py", *words, "--seeds", 1, 1, "--variants", *variants) == 2
        assert not (tmp_path / "output").exists()
        return capsys.readouterr().err

    return refuse


def test_names_that_would_share_a_file(refused, tmp_path):
    assert "--variants: A+B, A B need names that differ" in refused(f"A+B={ATSS}", f"A B={CLQ}")
    assert "give each variant a NAME= of its own" in refused(f"A={ATSS}", f"A={CLQ}")
    assert "give each variant a NAME= of its own" in refused(f"{'A' * 250}={ATSS}")


@pytest.mark.parametrize(
    "content", ['{"CLQ": {"1": {"AP": 40.0}}}', '{"rows": {"CLQ": {"seeds": {"one": {}}}}}', "[]", '{"rows": {"A": 1}}']
)
def test_a_json_file_that_is_of_something_else_is_left_alone(refused, tmp_path, content):
    (tmp_path / "kept.json").write_text(content)
    assert f"{tmp_path}/kept.json: is not what tools/study.py writes" in refused(f"ATSS={ATSS}")
    assert (tmp_path / "kept.json").read_text() == content


def test_runs_of_other_settings_are_not_mixed(refused, tiny, tmp_path):
    kept = f"{tiny} {ATSS}"
    record = {"rows": {"ATSS": {"settings": kept, "seeds": {"1": {"AP": 40.0}}}}}
    (tmp_path / "kept.json").write_text(json.dumps(record))
    said = refused(f"ATSS={ATSS} SOLVER.BASE_LR 0.1")
    assert f"kept.json: ATSS is kept with {kept}, which is not {kept} SOLVER.BASE_LR 0.1; choose another" in said
    assert "kept/ATSS_seed1.npz: no such file" in refused(f"ATSS={ATSS}")
    assert "kept/ATSS_seed1.npz: no such file" in refused(f"ATSS=./{ATSS}")  # the same config
    record["rows"]["ATSS"]["settings"] = f"other.yaml {ATSS}"
    (tmp_path / "kept.json").write_text(json.dumps(record))
    assert f"ATSS is kept with other.yaml {ATSS}, which is not {kept}; choose another" in refused(f"ATSS={ATSS}")
    del record["rows"]["ATSS"]["settings"]  # a record of tools/ablate.py
    (tmp_path / "kept.json").write_text(json.dumps(record))
    assert "ATSS is kept with unknown settings" in refused(f"ATSS={ATSS}")
    assert json.loads((tmp_path / "kept.json").read_text()) == record


def test_a_store_without_its_json_file(tmp_path, run, capsys):
    words = "--reference", "CLQ", "--output", tmp_path / "output"
    assert run("tools/compare.py", tmp_path / "kept", *words) == 2
    assert f"{tmp_path}/kept.json: no such file" in capsys.readouterr().err
    (tmp_path / "kept.json").write_text('{"rows": {}}')
    assert run("tools/compare.py", tmp_path / "kept", *words) == 2
    assert f"{tmp_path}/kept.json: holds no run yet" in capsys.readouterr().err
