import pytest
import torch
from clq.modeling.head.towers import Layers, TaskDecomposition, interactive_towers, separate_towers, shared_tower
from torch import nn
from torch.nn import functional as F


def test_separate_towers_share_nothing():
    towers = separate_towers(16, Layers(32, 2))
    assert (towers.shared_channels, towers.out_channels) == (16, 32)
    x = torch.randn(1, 16, 3, 4)
    assert towers.shared(x) is x
    assert towers.cls(x).shape == towers.reg(x).shape == (1, 32, 3, 4)
    assert not {id(p) for p in towers.cls.parameters()} & {id(p) for p in towers.reg.parameters()}
    without = separate_towers(16, Layers(32, 0))
    assert (without.shared_channels, without.out_channels) == (16, 16)


def test_both_sides_read_the_output_of_a_shared_tower():
    towers = shared_tower(16, Layers(32, 2))
    x = torch.randn(1, 16, 3, 4)
    shared = towers.shared(x)
    assert towers.cls(shared) is shared
    assert towers.reg(shared) is shared
    without = shared_tower(16, Layers(32, 0))
    assert (towers.shared_channels, towers.out_channels) == (32, 32)
    assert (without.shared_channels, without.out_channels) == (16, 16)


def test_depthwise_layers_convolve_each_channel_and_then_mix_the_channels():
    torch.manual_seed(0)
    layers = Layers(5, 2, "", depthwise=True)(3)
    assert [tuple(p.shape) for p in layers.parameters() if p.dim() == 4] == [
        (3, 1, 3, 3),
        (5, 3, 1, 1),
        (5, 1, 3, 3),
        (5, 5, 1, 1),
    ]
    x = torch.randn(1, 3, 4, 6)
    per_channel, mix = layers[0]
    alone = torch.cat([F.conv2d(x[:, i : i + 1], per_channel.weight[i : i + 1], padding=1) for i in range(3)], 1)
    alone = (alone + per_channel.bias.view(-1, 1, 1)).relu()
    expected = torch.einsum("oi,nihw->nohw", mix.weight[..., 0, 0], alone) + mix.bias.view(-1, 1, 1)
    torch.testing.assert_close(layers[0](x), expected.relu(), atol=1e-5, rtol=1e-5)


def test_interactive_towers_read_every_layer():
    towers = interactive_towers(16, Layers(32, 3))
    assert (towers.shared_channels, towers.out_channels) == (96, 32)
    x = torch.randn(2, 16, 3, 4)
    shared = towers.shared(x)
    layers = [x]
    for layer in towers.shared:
        layers.append(layer(layers[-1]))
    assert torch.equal(shared, torch.cat(layers[1:], 1))
    assert towers.cls(shared).shape == towers.reg(shared).shape == (2, 32, 3, 4)
    with pytest.raises(ValueError, match="raise NUM_CONVS"):
        interactive_towers(16, Layers(32, 0))


@pytest.mark.parametrize("norm", ["GN", "BN", ""])
def test_decomposition_weights_each_layer_by_attention_over_the_image(norm):
    torch.manual_seed(0)
    task = TaskDecomposition(32, 3, norm).eval()
    for p in task.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 96, 4, 5)
    found = task(x)
    for image, out in zip(x, found, strict=True):  # one at a time, because other images have no influence
        first, second = task.attention[0], task.attention[2]
        mean = image.mean(dim=(1, 2))
        weight = (
            second.weight[..., 0, 0] @ (first.weight[..., 0, 0] @ mean + first.bias).relu() + second.bias
        ).sigmoid()
        layers = torch.cat([w * layer for w, layer in zip(weight, image.split(32), strict=True)])
        expected = F.conv2d(layers.unsqueeze(0), task.reduce.weight, task.reduce.bias)
        expected = (task.reduce.norm(expected) if norm else expected).relu()
        torch.testing.assert_close(out.unsqueeze(0), expected, atol=1e-4, rtol=1e-4)
    assert (task.reduce.bias is not None) == (norm == "")


def test_at_initialization_the_attention_is_one_half():
    """Its convolutions are near zero then, so its sigmoids are near 1/2."""
    task = TaskDecomposition(32, 6, "GN")
    assert task.attention(torch.randn(1, 192, 1, 1)).flatten().tolist() == pytest.approx([0.5] * 6, abs=0.01)
