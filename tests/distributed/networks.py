"""Networks that other processes can import, as saved models ask for."""

import tensorlite as tl
from tensorlite import nn, random


class DigitNet(nn.Module):
    """A small convolutional network with batch norm and dropout, for (N, height, width, C)."""

    def __init__(self, key, classes=10, channels=3, rate=0.0):
        k1, k2, k3 = random.split(key, 3)
        self.conv1 = nn.Conv(channels, 16, 3, key=k1)
        self.norm = nn.BatchNorm(16)
        self.conv2 = nn.Conv(16, 32, 3, key=k2)
        self.dropout = nn.Dropout(rate)
        self.head = nn.Linear(32, classes, key=k3)

    def __call__(self, x, training=False, key=None):
        x = nn.relu(self.norm(self.conv1(x), training=training))
        x = nn.max_pool(x, 2)
        x = tl.max(nn.relu(self.conv2(x)), axis=(1, 2))
        return self.head(self.dropout(x, key=key, training=training))


def line(key):
    """One number from each row of three."""
    return nn.Linear(3, 1, key=key)
