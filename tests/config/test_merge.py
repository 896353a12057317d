"""What wins over what in a config, and each mistake in one line that names what is at fault."""

from pathlib import Path

import clq
import pytest
from detectron2.utils.file_io import PathHandler, PathManager

CPU = ["MODEL.DEVICE", "cpu"]


def test_overrides_win_over_the_file_and_the_file_over_its_base(write):
    write(
        base="VERSION: 2\nMODEL: {CLQ: {TOPK: 5, NUM_CONVS: 3, CONV_DIM: 96}}",
        own="_BASE_: base.yaml\nMODEL: {CLQ: {TOPK: 6, NUM_CONVS: 2}}",
    )
    c = clq.setup_cfg("own.yaml", ["MODEL.CLQ.TOPK", "7", *CPU]).MODEL.CLQ
    assert (c.TOPK, c.NUM_CONVS, c.CONV_DIM, c.NMS_THRESH) == (7, 2, 96, 0.6)


@pytest.mark.parametrize("value", ["['p3', 'p4']", ["p3", "p4"], ("p3", "p4")])
def test_an_override_may_be_text_or_what_it_stands_for(value):
    assert clq.setup_cfg(None, ("MODEL.CLQ.IN_FEATURES", value, *CPU)).MODEL.CLQ.IN_FEATURES == ["p3", "p4"]


def test_a_config_saved_while_clq_followed_the_papers_text_means_what_it_meant(write, caplog, refusal):
    cls = "QUALITY: {NAME: iou, TARGET: pred_box}, ALIGN: {NAME: learned}, BOX: {CODING: delta, WEIGHT_BY: none}"
    write(own="MODEL: {CLQ: {" + cls + "}}\nVERSION: 2", now="MODEL: {CLQ: {QUALITY: {NAME: iou}}}\nVERSION: 2")
    c = clq.setup_cfg("own.yaml", CPU).MODEL.CLQ
    assert (c.QUALITY.TOWER, c.ALIGN.OFFSET_GROUPS, c.ALIGN.GRADIENT) == ("reg", 1, 0.0)
    assert (c.BOX.CODING, c.BOX.WEIGHT_FLOOR, c.TOPK_COUNTS) == ("delta", 1.0, "pairs")
    assert "TARGET" not in c.QUALITY and "own.yaml: saved by an older version" in caplog.text
    c = clq.setup_cfg("now.yaml", CPU).MODEL.CLQ
    assert (c.QUALITY.TOWER, c.ALIGN.OFFSET_GROUPS, c.ALIGN.GRADIENT) == ("cls", 4, 1.0)
    write(both="_BASE_: now.yaml\nMODEL: {CLQ: {QUALITY: {TARGET: anchor, TOWER: cls}}}\nVERSION: 2")
    assert "both.yaml: the config key MODEL.CLQ.QUALITY.TARGET does not exist any more" in refusal("both.yaml")
    assert "MODEL.CLQ.QUALITY.TOWER" in refusal(None, ["MODEL.CLQ.QUALITY.TARGET", "pred_box"])


@pytest.mark.parametrize(
    "content, message",
    [
        ("MODEL: {CLQ: {TOPKK: 3}}\nVERSION: 2", "no config key MODEL.CLQ.TOPKK; did you mean MODEL.CLQ.TOPK"),
        (
            "MODEL: {CLQ: {TOPK: nine}}\nVERSION: 2",
            "MODEL.CLQ.TOPK must be of type int, such as 9; this is of type str",
        ),
        ("MODEL: {CLQ: }\nVERSION: 2", "MODEL.CLQ is a group of keys (NUM_CLASSES, "),
        ("MODEL: [", "not valid yaml"),
        (b"\xff\xfe\x00", "not valid yaml"),
        ("", "not nested KEY: value pairs"),
        ("- MODEL", "not nested KEY: value pairs"),
        ("MODEL: !!python/tuple [a]", "only plain yaml is read"),
        ("_BASE_: gone.yaml", "gone.yaml cannot be read"),
        ("_BASE_: ./", "cannot be read"),
        ("_BASE_: own.yaml", "is its own _BASE_"),
        ("_BASE_: 3", "_BASE_ 3 is not the name of a file"),
        ("_BASE_: [[base.yaml]]", "is not the name of a file"),
        ("A: " + "[" * 60 + "]" * 60, "nests deeper than 50 levels"),
        ("A: " + "[" * 100_000, "nests deeper than 50 levels"),
        ("a: &a [1, *a]", "its alias *a contains itself"),
        ("#" * (1 << 20) + "\nVERSION: 2", "more than 1 MiB"),
        ("VERSION: " + "9" * 5000, "Exceeds the limit"),
        ("VERSION: 3", "Cannot merge a v3 config"),
    ],
)
def test_a_broken_file_is_refused(write, content, message, refusal):
    write(own=content)
    said = refusal("own.yaml")
    assert said.startswith("own.yaml: ") and message in said


@pytest.mark.parametrize("base", ["CLQ/clq_lite_320", "configs/CLQ/clq_lite_320.yaml", "[own.yaml, CLQ/clq_lite_320]"])
def test_a_base_may_be_the_name_of_a_config_of_the_project(base, write):
    write(named=f"_BASE_: {base}\nMODEL: {{CLQ: {{TOPK: 7}}}}", own="MODEL: {CLQ: {NUM_CONVS: 9}}\nVERSION: 2")
    cfg = clq.setup_cfg("named.yaml")
    expected = clq.setup_cfg("CLQ/clq_lite_320")
    assert cfg.MODEL.CLQ.TOPK == 7 and cfg.MODEL.CLQ.QUALITY.ALPHA == 0.3
    cfg.MODEL.CLQ.TOPK = expected.MODEL.CLQ.TOPK
    assert cfg == expected


def test_a_file_goes_before_a_config_of_the_same_name(write):
    write(named="_BASE_: CLQ/clq_lite_320.yaml", own="VERSION: 2")
    Path("CLQ").mkdir()
    Path("CLQ/clq_lite_320.yaml").write_text("MODEL: {CLQ: {TOPK: 9}}\nVERSION: 2")
    assert clq.setup_cfg("named.yaml").MODEL.CLQ.TOPK == 9


@pytest.mark.parametrize("tag", ["_BASE_: evil.yaml", "MODEL: !!python/object/apply:os.mkdir [made]"])
def test_nothing_in_a_file_or_its_base_executes(write, tmp_path, tag, refusal):
    write(own=tag, evil="MODEL: !!python/object/apply:os.mkdir [made]")
    assert "only plain yaml is read" in refusal("own.yaml")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.WEIGHTS"], "in pairs, KEY VALUE; got 1 words: MODEL.WEIGHTS"),
        (["MODEL.CLQ.TOPK", 9, 3], "got 3 words: MODEL.CLQ.TOPK 9 3"),
        (["MODEL.CLQ.TOPK.X", "3"], "no config key MODEL.CLQ.TOPK.X; did you mean MODEL.CLQ.TOPK"),
        ([3, "3"], "no config key 3"),
        (["MODEL.CLQ.BOX.LOSS_WEIGHT", "2"], "must be of type float, such as 2.0; this is of type int"),
        (["MODEL.CLQ", "2"], "MODEL.CLQ is a group of keys"),
    ],
)
def test_a_broken_override_is_refused(opts, message, refusal):
    assert message in refusal(None, opts)


def test_aliases_that_grow_are_refused_and_others_are_read(write, refusal):
    """Ten levels of ten aliases each would be 10^10 values, from less than 500 bytes."""
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else '1'}]" for i in range(10)]
    write(bomb="\n".join(levels), plain="MODEL: {CLQ: {TOPK: &n 7, NUM_CONVS: *n}}\nVERSION: 2")
    assert "more than 100000 values once its aliases are copied" in refusal("bomb.yaml")
    c = clq.setup_cfg("plain.yaml", CPU).MODEL.CLQ
    assert (c.TOPK, c.NUM_CONVS) == (7, 7)


def test_bases_that_name_each_other_or_too_many_are_refused(write, refusal):
    write(a="_BASE_: b.yaml", b="_BASE_: [c.yaml]", c="_BASE_: ./a.yaml")
    assert "a.yaml: is its own _BASE_" in refusal("a.yaml")
    write(**{f"n{i}": f"_BASE_: [n{i + 1}.yaml, n{i + 1}.yaml]" for i in range(20)}, n20="VERSION: 2")
    assert "more than 100 files as _BASE_" in refusal("n0.yaml")


class Fetcher(PathHandler):
    """Serves config files from a scheme and counts how often."""

    def __init__(self, path):
        self.path, self.fetched = path, 0

    def _get_supported_prefixes(self):
        return ["elsewhere://"]

    def _get_local_path(self, path, **kwargs):
        self.fetched += 1
        return self.path

    def _open(self, path, mode="r", **kwargs):
        return open(self._get_local_path(path), mode)


@pytest.fixture
def fetcher(write, tmp_path, monkeypatch):
    monkeypatch.delenv("CLQ_REMOTE_BASE", raising=False)
    write(remote="MODEL: {CLQ: {TOPK: 5}}\nVERSION: 2", own="_BASE_: elsewhere://base.yaml", next="_BASE_: own.yaml")
    handler = Fetcher(str(tmp_path / "remote.yaml"))
    monkeypatch.setattr(PathManager, "_path_handlers", PathManager._path_handlers.copy())
    PathManager.register_handler(handler)
    return handler


def test_a_base_on_another_machine_is_fetched_only_if_allowed(fetcher, refusal, monkeypatch, caplog):
    for name in ("own.yaml", "next.yaml"):
        said = refusal(name)
        assert said.startswith(f"{name}: its _BASE_ elsewhere://base.yaml is on another machine")
        assert "CLQ_REMOTE_BASE=1" in said
    assert fetcher.fetched == 0
    monkeypatch.setenv("CLQ_REMOTE_BASE", "1")
    assert clq.setup_cfg("next.yaml", CPU).MODEL.CLQ.TOPK == 5
    assert fetcher.fetched > 0 and "fetching its _BASE_ elsewhere://base.yaml" in caplog.text


@pytest.mark.parametrize("base", ["http://127.0.0.1:9/a.yaml", "https://127.0.0.1:9/a.yaml", "detectron2://a.yaml"])
def test_no_scheme_of_detectron2_is_fetched(write, base, refusal, monkeypatch):
    monkeypatch.delenv("CLQ_REMOTE_BASE", raising=False)
    monkeypatch.setattr(PathManager, "get_local_path", None)  # calling it would fail
    write(own=f"_BASE_: {base}")
    assert f"its _BASE_ {base} is on another machine" in refusal("own.yaml")


def test_a_base_that_cannot_be_fetched_is_named(write, refusal, monkeypatch):
    monkeypatch.setenv("CLQ_REMOTE_BASE", "1")
    write(own="_BASE_: http://127.0.0.1:9/a.yaml")  # a port that nothing listens at
    assert "its _BASE_ http://127.0.0.1:9/a.yaml cannot be fetched (" in refusal("own.yaml")
