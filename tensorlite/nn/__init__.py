"""Neural networks: modules, layers, and the functions that they are made of. Channels come last.

    class Net(nn.Module):
        def __init__(self, key):
            k1, k2 = random.split(key)
            self.conv = nn.Conv(3, 64, 5, key=k1)
            self.norm = nn.BatchNorm(64)
            self.head = nn.Linear(64, 10, key=k2)

        def __call__(self, x, training=False):
            x = nn.relu(self.norm(self.conv(x), training=training))
            return self.head(tl.mean(x, axis=(1, 2)))

Functions have lower-case names, layers capitals; `nn.init` holds initial values of parameters.
"""

from . import functional, init
from .functional import (
    attention,
    avg_pool,
    batch_norm,
    batch_norm_train,
    conv,
    conv_transpose,
    dropout,
    elu,
    embedding,
    gelu,
    l2_loss,
    layer_norm,
    leaky_relu,
    local_response_norm,
    log_softmax,
    max_pool,
    one_hot,
    relu,
    relu6,
    sigmoid,
    silu,
    softmax,
    softmax_cross_entropy,
    softplus,
    tanh,
)
from .layers import (
    AvgPool,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    LocalResponseNorm,
    MaxPool,
    Sequential,
)
from .module import Buffer, Module, count_parameters

__all__ = [
    "AvgPool",
    "BatchNorm",
    "Buffer",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "LocalResponseNorm",
    "MaxPool",
    "Module",
    "Sequential",
    "attention",
    "avg_pool",
    "batch_norm",
    "batch_norm_train",
    "conv",
    "conv_transpose",
    "count_parameters",
    "dropout",
    "elu",
    "embedding",
    "functional",
    "gelu",
    "init",
    "l2_loss",
    "layer_norm",
    "leaky_relu",
    "local_response_norm",
    "log_softmax",
    "max_pool",
    "one_hot",
    "relu",
    "relu6",
    "sigmoid",
    "silu",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "tanh",
]
