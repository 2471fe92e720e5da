"""The scale-out laboratory: many slow hosts on one machine, in dilated time.

`network` joins network namespaces by links of a limited rate, `shares` gives each a share of a
processor, `hosts` starts processes that live in both, `rank` is what runs there, `worlds` has
several of them train together and measures it, `spark` has the workers of a standalone cluster do
the same, and `figures` prints and draws. `benchmarks/scaleout.py` is the command.
"""
