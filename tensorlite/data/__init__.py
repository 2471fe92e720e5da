"""Data sets, and the readers that fill them: NumPy arrays in, NumPy arrays out.

`ArrayDataset` holds arrays of equal length and hands them out in batches, in an order that can be
recomputed anywhere from (seed, epoch). `cifar10` reads CIFAR-10's binary records from a local disk,
HDFS or S3; `write_cifar10` writes them. `handwritten_digits` is a small real data set without a
download, which `digits_as_cifar10` writes in that format.
"""

from tensorlite.data import augment
from tensorlite.data.cifar import DataError, cifar10, write_cifar10
from tensorlite.data.dataset import ArrayDataset, permutation
from tensorlite.data.digits import digits_as_cifar10, handwritten_digits

__all__ = [
    "ArrayDataset",
    "DataError",
    "augment",
    "cifar10",
    "digits_as_cifar10",
    "handwritten_digits",
    "permutation",
    "write_cifar10",
]
