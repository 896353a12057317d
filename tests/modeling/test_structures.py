from clq.modeling.structures import Predictions
from torch import tensor


def test_the_predictions_of_one_image_are_its_cells_row_major():
    """Two images of a level of 2 x 3 cells with two channels, and of one with a single cell."""
    cells = tensor([[[0.0, 1, 2], [3, 4, 5]], [[10, 11, 12], [13, 14, 15]]])  # of the first image
    maps = [tensor([cells.tolist(), (cells + 100).tolist()]), tensor([[[[7.0]], [[17.0]]], [[[107.0]], [[117.0]]]])]
    of_image = Predictions(maps, maps, [], []).of_image(1)
    large, small = of_image.cls_logits
    assert large.tolist() == [[100, 110], [101, 111], [102, 112], [103, 113], [104, 114], [105, 115]]
    assert small.tolist() == [[107, 117]]
    assert [x.tolist() for x in of_image.box_pred] == [large.tolist(), small.tolist()]
    assert of_image.quality_logits == of_image.coarse_box_pred == []
