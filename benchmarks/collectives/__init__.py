"""All-reduce as `benchmarks/allreduce.py` times it, in each framework.

The files `in_<framework>` have `build_all_reduce`, which connects this process with the others the
first time, and returns a function that sums a float32 array over all ranks, in place:

    rank, hosts     this process, and the addresses of all, in rank order
    folder          an empty folder that all ranks see, where they find each other
    elements        length of the array
    check           fill the array with rank + 1 first, and return its last element afterwards
    interface       (PyTorch) the network interface to use
    shared          (tensorlite) whether to use shared memory
"""
