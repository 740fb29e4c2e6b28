#!/bin/sh
# Build a pyverbs that fits this system's libibverbs, for one Python, without root.
#
#   examples/build_pyverbs.sh [PYTHON]       PYTHON is that of a virtual environment; default: python
#
# pyverbs must come from the same rdma-core as libibverbs, as far as one number goes (docs/rdma_setup.md). The
# number is read from the library, and of the package's source of that number the modules that cktrain uses are
# built, which takes one or two minutes on two cores. It needs a C compiler, Python's headers and pkg-config; what else
# it needs (Cython, CMake, ninja) goes into a folder that is deleted at the end.
set -eu
python=$(command -v "${1:-python}")

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
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# rdma-core of that age is not understood by the newest Cython.
"$python" -m venv "$work/tools"
PATH=$work/tools/bin:$PATH
pip install -q 'cython<3.1' cmake ninja scikit-build-core setuptools-scm
pip download -q --no-deps --no-binary pyverbs --no-build-isolation -d "$work" "pyverbs==$version"
mkdir "$work/source"
tar xzf "$work"/pyverbs-*.tar.gz -C "$work/source" --strip-components=1

# No run path: the modules are to take the system's library, not the one that they are linked with here.
cmake -GNinja -S "$work/source/rdma-core" -B "$work/build" -DNO_MAN_PAGES=1 -DENABLE_RESOLVE_NEIGH=0 \
    -DPYTHON_EXECUTABLE="$work/tools/bin/python" -DCMAKE_SKIP_RPATH=1 \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_FLAGS_RELEASE=-O1 >"$work/configure.log" 2>&1 || {
    tail -n 30 "$work/configure.log" >&2
    exit 1
}
targets=
for module in addr base cmid cq device dmabuf enums flow libibverbs libibverbs_enums librdmacm librdmacm_enums \
    mem_alloc mr pd qp srq wq wr xrcd; do
    [ ! -e "$work/source/rdma-core/pyverbs/$module.pyx" ] || targets="$targets python/pyverbs/$module$suffix"
done
# shellcheck disable=SC2086  # a list of words
ninja -C "$work/build" $targets

rm -rf "$packages/pyverbs"
cp -RL "$work/build/python/pyverbs" "$packages/pyverbs"
"$python" -c 'import pyverbs.device, pyverbs.qp; print("[build_pyverbs] it imports:", pyverbs.__path__[0])'
