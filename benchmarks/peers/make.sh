#!/bin/sh
# Makes a virtual environment for each framework that the benchmarks run beside tensorlite, below
# TENSORLITE_PEERS (default .peers), from the list of its packages in this folder. An environment whose list
# has not changed since is kept.
# Usage: [PYTHON=<interpreter>] [TENSORLITE_PEERS=<folder>] benchmarks/peers/make.sh [NAME...]
set -eu

here=$(dirname "$0")
python=${PYTHON:-python3}
peers=${TENSORLITE_PEERS:-.peers}

if [ $# -eq 0 ]; then
    set -- torch tensorflow jax tinygrad
fi
for name in "$@"; do
    packages=$here/$name.txt
    if ! [ -f "$packages" ]; then
        echo "make.sh: there is no $packages; frameworks are torch, tensorflow, jax, tinygrad" >&2
        exit 2
    fi
    venv=$peers/$name
    if cmp -s "$packages" "$venv/.installed"; then
        echo "$venv is there"
        continue
    fi
    echo "Making $venv"
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$packages"
    cp "$packages" "$venv/.installed"
done
