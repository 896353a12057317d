import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from clq.errors import UserError
from clq.evaluation.matches import Matches, average_precision, match_results
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def dataset(annotations, images, classes):
    return {
        "images": [{"id": i, "width": 200, "height": 200, "file_name": f"{i}.png"} for i in images],
        "categories": [{"id": c, "name": str(c)} for c in classes],
        "annotations": [
            {"id": n, "area": a["bbox"][2] * a["bbox"][3], "iscrowd": 0, **a}
            for n, a in enumerate(annotations, start=1)
        ],
    }


def written(folder, truth, results):
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return match_results(str(folder / "truth.json"), str(folder / "results.json"))


def pycocotools_ap(truth, results):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(r) for r in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0]


@pytest.fixture
def by_hand(tmp_path):
    """Two images of one object each. By score: a hit at all IoUs in image 1; a miss, then an IoU of .77 in image 2."""
    box = [0, 0, 100, 100]
    truth = dataset([{"image_id": i, "category_id": 1, "bbox": box} for i in (1, 2)], [1, 2], [1])
    found = [(1, 0.9, box), (2, 0.8, [150, 150, 20, 20]), (2, 0.7, [0, 0, 77, 100])]
    results = [{"image_id": i, "category_id": 1, "score": s, "bbox": b} for i, s, b in found]
    return written(tmp_path, truth, results)


def test_by_hand(by_hand):
    assert by_hand.image.tolist() == [0, 1, 1]
    assert by_hand.correct.tolist() == [2**10 - 1, 0, 2**6 - 1]  # .77 is enough for .50, .55, ... .75
    assert by_hand.truths.tolist() == [[1], [1]] and by_hand.counts.tolist() == [3]
    # Of 101 recalls 51 lie at or below 1/2, and 67 at or below 2/3.
    both = (6 * (51 + 50 * 2 / 3) + 4 * 51) / 1010
    second_alone = 6 * 101 / 2 / 1010
    first_twice = (6 * (67 + 34 * 3 / 4) + 4 * 67) / 1010
    weights = np.array([[1, 1], [0, 1], [2, 1], [5, 0], [0, 0]])
    expected = [100 * both, 100 * second_alone, 100 * first_twice, 100.0, np.nan]
    np.testing.assert_allclose(average_precision(by_hand, weights), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(average_precision(by_hand), [100 * both], rtol=0, atol=1e-12)


def random_case(seed, images=30, classes=(1, 3, 4, 9), ties_within_images=True):
    """Objects, some in crowds, and detections near them or anywhere, with many equal scores. Class 9 has no object."""
    random = np.random.default_rng(seed)
    annotations, results = [], []
    for image in range(100, 100 + images):
        for _ in range(random.integers(0, 6)):
            category = int(random.choice(classes[:-1]))
            box = np.concatenate([random.uniform(0, 120, 2), random.uniform(15, 60, 2)])
            crowd = int(random.random() < 0.1)
            annotations.append(
                {"image_id": image, "category_id": category, "bbox": box.tolist(), "iscrowd": crowd},
            )
            for _ in range(random.integers(0, 4)):
                moved = (box + random.normal(0, 3, 4)).tolist()
                score = round(float(random.beta(4, 2)), 1)
                results.append({"image_id": image, "category_id": category, "bbox": moved, "score": score})
        for _ in range(random.integers(0, 5)):
            box = [*random.uniform(0, 120, 2), *random.uniform(15, 60, 2)]
            score = round(float(random.beta(2, 4)), 1)
            results.append({"image_id": image, "category_id": int(random.choice(classes)), "bbox": box, "score": score})
    if not ties_within_images:
        places = {}
        for result in results:
            place = places[result["image_id"]] = places.get(result["image_id"], 0) + 1
            result["score"] += place / 1024
    return dataset(annotations, range(100, 100 + images), classes), results


@pytest.mark.parametrize("seed", range(4))
def test_whole_sets_as_pycocotools(seed, tmp_path):
    truth, results = random_case(seed)
    (ap,) = average_precision(written(tmp_path, truth, results))
    assert ap == pytest.approx(pycocotools_ap(truth, results), abs=1e-9)
    assert 5 < ap < 95


def repeated(truth, results, times):
    """The data set in which each image stands as many times as said, each time under an id of its own."""
    copies = {
        image["id"]: [1000 * image["id"] + copy for copy in range(count)]
        for image, count in zip(truth["images"], times, strict=True)
    }
    images = [new for old in copies.values() for new in old]
    annotations = [
        {**{k: v for k, v in a.items() if k not in ("id", "area")}, "image_id": new}
        for a in truth["annotations"]
        for new in copies[a["image_id"]]
    ]
    again = dataset(annotations, images, [c["id"] for c in truth["categories"]])
    return again, [{**r, "image_id": new} for r in results for new in copies[r["image_id"]]]


@pytest.mark.parametrize("seed", range(3))
def test_resamples_as_pycocotools_on_repeated_images(seed, tmp_path):
    truth, results = random_case(seed, images=12, ties_within_images=False)
    matches = written(tmp_path, truth, results)
    weights = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12), size=15)
    expected = [pycocotools_ap(*repeated(truth, results, row)) for row in weights]
    np.testing.assert_allclose(average_precision(matches, weights), expected, rtol=0, atol=1e-9)


def test_many_resamples_are_what_each_is_alone(tmp_path, monkeypatch):
    matches = written(tmp_path, *random_case(7))
    weights = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=50)
    alone = [average_precision(matches, row[None])[0] for row in weights]
    monkeypatch.setattr("clq.evaluation.matches._CHUNK", 7 * len(matches.image))
    np.testing.assert_allclose(average_precision(matches, weights), alone, rtol=0, atol=1e-9)


def test_a_file_gives_back_what_was_saved(tmp_path):
    matches = written(tmp_path, *random_case(1))
    matches.save(str(tmp_path / "m.npz"))
    again = Matches.load(str(tmp_path / "m.npz"))
    assert average_precision(again) == average_precision(matches)
    for name in ("image_ids", "truths", "counts", "image", "correct", "ignored"):
        assert np.array_equal(getattr(again, name), getattr(matches, name))


def test_without_detections(tmp_path):
    truth, _ = random_case(0)
    assert average_precision(written(tmp_path, truth, [])).tolist() == [0.0]


def test_other_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"gone\.npz: no such file"):
        Matches.load(str(tmp_path / "gone.npz"))
    (tmp_path / "text.npz").write_text("no npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name in ("text", "other"):
        with pytest.raises(UserError, match=rf"{name}\.npz: holds no matches of a run"):
            Matches.load(str(tmp_path / f"{name}.npz"))


@pytest.mark.parametrize(
    "name, change",
    [
        ("image", lambda x: x[:-1]),
        ("image", lambda x: x + 1),  # beyond the last image
        ("counts", lambda x: x - 1),
        ("counts", lambda x: np.append(x, 0)),  # of more classes than truths has
        ("correct", lambda x: x.astype(float)),
        ("correct", lambda x: np.append(x, x)),
        ("correct", lambda x: x | 2**10),  # an eleventh threshold
        ("truths", lambda x: x[:, 0]),
        ("truths", lambda x: 0 * x),  # fewer than were found
        ("ignored", lambda x: x.astype(int) - 1),
        ("image_ids", lambda x: x[:1]),
    ],
)
def test_files_whose_content_makes_no_sense_are_refused(by_hand, tmp_path, name, change):
    dataclasses.replace(by_hand, **{name: change(getattr(by_hand, name))}).save(str(tmp_path / "m.npz"))
    with pytest.raises(UserError, match=r"m\.npz: holds no matches of a run, or is damaged"):
        Matches.load(str(tmp_path / "m.npz"))
