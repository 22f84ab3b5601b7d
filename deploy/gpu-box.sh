#!/usr/bin/env bash
# Prepares a fresh Ubuntu machine with NVIDIA GPUs, as root or with sudo: compiler, Python, the locked environment.
# deploy/ray-launcher and deploy/skypilot run it on each machine. Done already: returns soon. It installs no driver;
# `make preflight` says which one is needed.
set -euo pipefail
cd "$(dirname "$0")/.."

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
install() { as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q -o DPkg::Lock::Timeout=600 "$@"; }
# Triton compiles at run time: it wants gcc, and the headers of this Python.
complete() {
    command -v "$1" >/dev/null && "$1" -c 'import ensurepip, pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").is_file())' 2>/dev/null
}

as_root apt-get update -q -o DPkg::Lock::Timeout=600
install git make build-essential
python=python3.12
if ! complete "$python" && ! install python3.12-venv python3.12-dev; then
    # Ubuntu 22.04 has neither 3.11's headers nor 3.12.
    python3 -m pip install -q --user uv
    uv=$(python3 -m site --user-base)/bin/uv
    "$uv" python install -q 3.12
    python=$("$uv" python find --managed-python 3.12)
fi
STEP_SERVE_MACHINE=gpu make venv PYTHON="$python"
