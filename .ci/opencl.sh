#!/usr/bin/env bash
# The OpenCL tests on three implementations: PoCL, which comes with PyOpenCL; Intel's runtime, which runs on all x86
# processors; and a chosen subset under Oclgrind, a simulator that reports accesses out of bounds and data races.
# Usage: opencl.sh PYTHON [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
here=$PWD/.opencl
mkdir -p "$here"

if [ ! -e "$here/intel/lib/libintelocl.so" ]; then
    "$python" -m venv "$here/intel"
    "$here/intel/bin/pip" install --quiet intel-opencl-rt intel-cmplr-lib-rt
fi
if [ ! -e /usr/lib/oclgrind/liboclgrind-rt-icd.so ]; then
    [ "$(id -u)" = 0 ] || { echo "install Debian's package oclgrind, or run this as root" >&2; exit 1; }
    apt-get update -qq && apt-get install -qq -y --no-install-recommends oclgrind
fi
# The loader reads a folder of files that each name a driver. Devices are numbered by the names of their platforms,
# and both of these come before PoCL, which shows up by itself: so opencl:0 is the one that a folder names.
mkdir -p "$here/intel-icd" "$here/oclgrind-icd" "$here/no-icd"
echo "$here/intel/lib/libintelocl.so" >"$here/intel-icd/intel.icd"
echo /usr/lib/oclgrind/liboclgrind-rt-icd.so >"$here/oclgrind-icd/oclgrind.icd"

tests=(tests/backends/opencl tests/backends/nests -k opencl)
failed=()
echo "== PoCL"
OCL_ICD_VENDORS=$here/no-icd "$python" -m pytest "${tests[@]}" "$@" || failed+=(PoCL)
echo "== Intel"
OCL_ICD_VENDORS=$here/intel-icd LD_LIBRARY_PATH=$here/intel/lib \
    "$python" -m pytest "${tests[@]}" "$@" || failed+=(Intel)
echo "== Oclgrind"
log=$here/oclgrind.log
rm -f "$log"
OCL_ICD_VENDORS=$here/oclgrind-icd OCLGRIND_DATA_RACES=1 OCLGRIND_LOG=$log TENSORLITE_CACHE= \
    "$python" -m pytest tests/backends/opencl/test_checked.py "$@" || failed+=(Oclgrind)
if [ -s "$log" ]; then
    echo "Oclgrind reports:"
    head -n 60 "$log"
    failed+=("Oclgrind's checks")
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
echo "The OpenCL tests passed on PoCL, Intel's runtime and Oclgrind."
