"""The six models that `benchmarks/train_step.py` trains, and what each framework makes of them.

`definitions` says each model once: its weights as NumPy arrays, and its forward pass in terms of a
dozen operations. The files `in_<framework>` give these operations in the words of a framework, and
the training step around them: `build_step(...)` returns a function that takes one step and returns
the loss. So all train the same model, from the same weights, on the same batch.
"""
