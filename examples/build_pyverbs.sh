#!/bin/sh
# Build a pyverbs that fits this system's libibverbs, for one Python, without root.
#
#   examples/build_pyverbs.sh [PYTHON]       PYTHON is that of a virtual environment; default: python
#
# pyverbs must come from the same rdma-core as libibverbs, as far as one number goes (docs/rdma_setup.md). The
# number is read from the library, and the package's source of that number is built: five minutes on two cores.
# It needs a C compiler, Python's headers and pkg-config.
set -eu
python=${1:-python}

library=$(ldconfig -p 2>/dev/null | awk '$1 == "libibverbs.so.1" { print $NF; exit }')
[ -n "$library" ] || library=$(/sbin/ldconfig -p | awk '$1 == "libibverbs.so.1" { print $NF; exit }')
if [ -z "$library" ]; then
    echo "[build_pyverbs] libibverbs is not installed. Ask for ibverbs-providers and librdmacm1." >&2
    exit 1
fi
private=$(grep -ao 'IBVERBS_PRIVATE_[0-9]*' "$library" | head -n 1 | tr -dc 0-9)
case $private in
34) version=56.1rc0 ;; # rdma-core 34 to 56
57) version=57.0 ;;    # 57 and 58
59) version=59.0 ;;    # 59 to 63
*)
    echo "[build_pyverbs] no packaged pyverbs has the private interface $private of $library." \
        "Build rdma-core's own source of your version with cmake -DIN_PLACE=1; pyverbs is in build/python." >&2
    exit 1
    ;;
esac
echo "[build_pyverbs] $library has the private interface $private: pyverbs $version"

# rdma-core of that age is not understood by the newest Cython; what the build installs obeys this file.
constraint=$(mktemp)
trap 'rm -f "$constraint"' EXIT
echo 'cython<3.1' >"$constraint"
PIP_CONSTRAINT=$constraint "$python" -m pip install --no-binary pyverbs \
    --config-settings=cmake.define.ENABLE_RESOLVE_NEIGH=0 "pyverbs==$version"
"$python" -c 'import pyverbs.device, pyverbs.qp; print("[build_pyverbs] it imports:", pyverbs.__path__[0])'
