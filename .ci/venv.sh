#!/bin/sh
# Makes or updates the virtual environment VENV and installs this project into it, editable, with
# EXTRAS. Usage: PYTHON=<interpreter or empty> .ci/venv.sh VENV EXTRAS
set -eu

venv=$1
extras=$2
own=$venv/bin/python

# Without a wish for another interpreter, an environment that works is kept.
if [ -n "${PYTHON:-}" ] || ! [ -x "$own" ] || ! "$own" -c '' 2>/dev/null; then
    python=$(.ci/require.sh python)
    wanted=$("$python" --version)
    found=$("$own" --version 2>/dev/null || true)
    if [ "$wanted" != "$found" ]; then
        echo "Making $venv with $wanted"
        "$python" -m venv --clear "$venv"
    fi
fi

echo "Installing tensorlite[$extras] into $venv (a minute or two the first time)"
"$own" -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
