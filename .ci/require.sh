#!/bin/sh
# Checks what pip cannot install, before anything else is done, so that the first line of output is
# the remedy. Usage: PYTHON=<interpreter or empty> .ci/require.sh python|java
# `python` prints the interpreter that it settled on.
set -eu

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

refuse() {
    echo "$1" >&2
    exit 1
}

require_python() {
    install="Debian/Ubuntu: sudo apt-get install python3.11 python3.11-venv; Fedora: sudo dnf install python3.11; macOS: brew install python@3.11"
    chosen=""
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null 2>&1 ||
            refuse "PYTHON=$PYTHON was not found; name a Python 3.11 or newer, or install one. $install"
        is_new_enough "$PYTHON" ||
            refuse "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1), but Python 3.11 or newer is needed. $install"
        chosen=$PYTHON
    else
        for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
            if is_new_enough "$candidate"; then
                chosen=$candidate
                break
            fi
        done
        [ -n "$chosen" ] || refuse "Python 3.11 or newer is needed. $install"
    fi
    # Debian splits the venv module's pip off into a package of its own.
    "$chosen" -c 'import ensurepip, venv' 2>/dev/null ||
        refuse "$chosen cannot make virtual environments. Debian/Ubuntu: sudo apt-get install python3-venv (or python3.X-venv for that version); elsewhere, install a complete Python."
    echo "$chosen"
}

require_java() {
    install="Debian/Ubuntu: sudo apt-get install openjdk-17-jre-headless (or openjdk-21-jre-headless); Fedora: sudo dnf install java-21-openjdk-headless; macOS: brew install --cask temurin@17"
    # Spark looks in JAVA_HOME first; so must this check.
    java=${JAVA_HOME:+$JAVA_HOME/bin/}java
    command -v "$java" >/dev/null 2>&1 ||
        refuse "Spark needs Java 17 or newer, and $java was not found${JAVA_HOME:+ (JAVA_HOME is set)}. $install"
    version=$("$java" -version 2>&1 | sed -n 's/.*version "\([^"]*\)".*/\1/p' | head -n 1)
    major=${version%%[!0-9]*}
    [ "${major:-0}" -ge 17 ] ||
        refuse "Spark needs Java 17 or newer, and $java is ${version:-not a working Java}. $install"
}

case "${1:-}" in
python) require_python ;;
java) require_java ;;
*) refuse "usage: .ci/require.sh python|java" ;;
esac
