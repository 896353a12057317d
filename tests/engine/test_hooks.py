"""The moving average of the weights, and the history of what is logged."""

import clq  # noqa: F401  (first: it lets Detectron2 import)
import pytest
import torch
from clq.engine.hooks import EMAHook, ShortHistory
from detectron2.engine import SimpleTrainer
from torch import nn


class Small(nn.Module):
    """A convolution with batch normalisation, and a frozen parameter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.frozen = nn.Parameter(torch.rand(5), requires_grad=False)

    def forward(self, x):
        return {"loss": (self.norm(self.conv(x)) - 1).square().mean()}


def trainer(folder, decay):
    """A training, on the same random images at each call, and its hook."""
    model = Small()
    images = torch.rand(20, 4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    train = SimpleTrainer(model, list(images), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    hook = EMAHook(model, decay, str(folder))
    train.register_hooks([hook])
    return train, hook


@pytest.mark.parametrize("decay, kept", [(0.9998, [2 / 11, 3 / 12, 4 / 13]), (0.2, [2 / 11, 0.2, 0.2]), (0.0, [0] * 3)])
def test_the_average_follows_the_weights(decay, kept, tmp_path):
    """It starts as the weights after the first step; each later step keeps the given share of it."""
    model = Small()
    hook = EMAHook(model, decay, str(tmp_path))
    weight, mean, count = model.conv.weight.data, model.norm.running_mean, model.norm.num_batches_tracked
    expected = None
    for step, value in enumerate([5.0, 1.0, 2.0, -3.0]):
        weight.fill_(value), mean.fill_(value + 1), count.fill_(step)
        expected = value if step == 0 else kept[step - 1] * expected + (1 - kept[step - 1]) * value
        hook.after_step()
        average = hook.model
        torch.testing.assert_close(average.conv.weight.data, torch.full_like(weight, expected))
        torch.testing.assert_close(average.norm.running_mean, torch.full_like(mean, expected + 1))
        assert average.norm.num_batches_tracked == step
        assert torch.equal(average.frozen, model.frozen)
    assert weight[0, 0, 0, 0] == -3.0  # the model is not changed


def test_a_resumed_average_equals_that_of_an_uninterrupted_training(tmp_path):
    whole, whole_hook = trainer(tmp_path, 0.9998)
    whole.train(0, 7)
    first, first_hook = trainer(tmp_path, 0.9998)
    first.train(0, 3)
    torch.save((first.model.state_dict(), first.state_dict()), tmp_path / "state.pth")
    weights, state = torch.load(tmp_path / "state.pth", weights_only=True)
    resumed, hook = trainer(tmp_path, 0.9998)
    resumed.model.load_state_dict(weights)
    resumed.load_state_dict(state)
    for _ in range(3):  # the images that the first part has seen
        next(resumed._data_loader_iter)
    resumed.train(3, 7)
    expected = whole_hook.model.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in hook.model.state_dict().items())
    assert any(not torch.equal(x, first_hook.model.state_dict()[name]) for name, x in expected.items())
    saved = torch.load(tmp_path / "model_final_ema.pth", weights_only=True)["model"]
    assert saved.keys() == resumed.model.state_dict().keys()
    assert all(torch.equal(x, expected[name]) for name, x in saved.items())


def test_a_training_that_fails_writes_no_final_average(tmp_path):
    train, _ = trainer(tmp_path, 0.9998)
    with pytest.raises(StopIteration):
        train.train(0, 21)  # there are 20 images
    assert not list(tmp_path.iterdir())


def test_a_training_resumed_without_an_average_starts_one_with_a_warning(tmp_path, caplog):
    train, hook = trainer(tmp_path, 0.9998)
    train.train(5, 6)
    assert "the average starts now" in caplog.text
    assert torch.equal(hook.model.conv.weight, train.model.conv.weight)


def test_the_history_of_a_training_does_not_grow(tmp_path):
    """Statistics over the whole training count what is forgotten too."""
    train, _ = trainer(tmp_path, 0.5)
    hook = ShortHistory()
    hook.length = 5
    train.register_hooks([hook])
    losses = []
    train.after_step = lambda: losses.append(train.storage.history("total_loss").latest())
    train.train(0, 12)
    history = train.storage.history("total_loss")
    assert [value for value, _ in history.values()] == losses[-5:]
    assert history.global_avg() == pytest.approx(sum(losses) / 12)
    assert history.median(3) == sorted(losses[-3:])[1]
