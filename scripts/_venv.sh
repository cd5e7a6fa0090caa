# shellcheck shell=bash
# Sourced by quickstart, test, lint and docs: makes the virtual environment, once.
#
#   ensure_venv run    what the program needs
#   ensure_venv dev    and what its tests and checks need
#   ensure_venv docs   what the program and its site need
#
# Sets $python to the environment's interpreter. A stamp in the environment remembers
# what was installed, so that a second run does nothing.
#
# Variables, all optional:
#   SELFSPEC_TUNE_VENV          where the environment lies (default: .venv in the checkout)
#   SELFSPEC_TUNE_PYTHON        the interpreter to make it with (default: the first new enough)
#   SELFSPEC_TUNE_TORCH_INDEX   a package index to take torch from, e.g. one of CPU-only builds
#   SELFSPEC_TUNE_TORCH         a requirement to install as it stands, e.g. 'torch==2.12.1'

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SELFSPEC_TUNE_VENV:-$root/.venv}
python=$venv/bin/python
torch_index=${SELFSPEC_TUNE_TORCH_INDEX:-}

say() { printf '%s\n' "$*" >&2; }

die() {
    printf 'error: ' >&2
    printf '%s\n' "$@" >&2
    exit 1
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11)
    if [ -n "${SELFSPEC_TUNE_PYTHON:-}" ]; then candidates=("$SELFSPEC_TUNE_PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if is_new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer is needed; found $("${candidates[0]}" --version 2>/dev/null || echo "no ${candidates[0]}")." \
        'Install a newer Python, or name one: SELFSPEC_TUNE_PYTHON=/path/to/python3'
}

make_venv() {
    local base
    base=$(find_python)
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$base cannot make virtual environments: its venv module is missing." \
            'On Debian and Ubuntu: apt install python3-venv. Or name another interpreter with SELFSPEC_TUNE_PYTHON.'
    say "Making a virtual environment in $venv"
    "$base" -m venv "$venv" || die "The virtual environment could not be made in $venv (no space, no permission?)."
}

pip_install() {
    "$python" -m pip install --no-input --disable-pip-version-check -qq "$@" || die \
        "pip could not install: $*" \
        'Its own message stands above. Without a network, or behind a proxy, tell pip of a mirror or of a' \
        'folder of wheels (pip config set global.index-url …, or PIP_FIND_LINKS=…) and run this again:' \
        'it goes on where it stopped.'
}

has_torch() {
    "$python" - 2>/dev/null <<'PY'
import sys
from importlib.metadata import version

sys.exit(tuple(int(part) for part in version("torch").split(".")[:2]) < (2, 11))
PY
}

has_nvidia_driver() {
    [ -e /proc/driver/nvidia/version ] || nvidia-smi -L >/dev/null 2>&1
}

# Asks pip what it would install, without installing it; fails if that is a CUDA build.
refuse_cuda_build() {
    local plan
    plan=$("$python" -m pip install --no-input --disable-pip-version-check -qq --dry-run --report - "$@") || die \
        "pip could not find: $*" \
        'Is there a network? SELFSPEC_TUNE_TORCH_INDEX can name another package index,' \
        'SELFSPEC_TUNE_TORCH another requirement.'
    if grep -Eq '"name": *"(nvidia|cuda)[-_]' <<<"$plan"; then
        die 'This machine has no NVIDIA driver, and pip would install a CUDA build of torch (several GB).' \
            'Either  SELFSPEC_TUNE_TORCH_INDEX=…  the index of CPU builds that PyTorch'"'"'s installation page shows' \
            'or      SELFSPEC_TUNE_TORCH=torch    to take the CUDA build all the same.'
    fi
}

install_torch() {
    local what
    if [ -n "${SELFSPEC_TUNE_TORCH:-}" ]; then
        what=("$SELFSPEC_TUNE_TORCH")
    elif has_nvidia_driver || [ -n "$torch_index" ]; then
        what=('torch>=2.11')
    else
        what=('torch==2.13.0')
    fi
    if [ -n "$torch_index" ]; then what+=(--index-url "$torch_index"); fi
    if [ -z "${SELFSPEC_TUNE_TORCH:-}" ] && ! has_nvidia_driver; then refuse_cuda_build "${what[@]}"; fi
    say "Installing ${what[0]} (some minutes)"
    pip_install "${what[@]}"
}

# Without a C compiler our kernels are compiled by a package that holds one. Where that cannot be had, the program works
# and is slower.
install_compiler() {
    local name
    if [ -n "${CC:-}" ]; then return; fi
    for name in clang gcc cc; do
        if command -v "$name" >/dev/null; then return; fi
    done
    say 'There is no C compiler here: installing the Python package ziglang, which holds one'
    "$python" -m pip install --no-input --disable-pip-version-check -qq -c "$venv/torch.txt" -e "${root}[compiler]" ||
        say 'It could not be installed. The program goes on without its native kernels, and decodes more slowly.'
}

# What the environment depends on; the stamp holds its checksum.
fingerprint() {
    {
        printf '%s\n' "$root" "$1" "$torch_index" "${SELFSPEC_TUNE_TORCH:-}" "${CC:-$(command -v clang gcc cc)}"
        "$python" -c 'import sys; print(sys.version)'
        cat "$root/pyproject.toml" "$root/scripts/_venv.sh"
    } | cksum
}

is_stamped() {
    [ "$(cat "$venv/selfspec-tune.$1.stamp" 2>/dev/null)" = "$(fingerprint "$1")" ]
}

stamp() {
    local level
    for level in "$@"; do fingerprint "$level" >"$venv/selfspec-tune.$level.stamp"; done
}

ensure_venv() {
    [ -x "$python" ] && is_stamped "$1" && return
    "$python" -m pip --version >/dev/null 2>&1 || make_venv
    is_new_enough "$python" || die "$venv was made with a Python older than 3.11; delete it and run this again."
    has_torch || install_torch
    # Nothing installed from here on may bring another torch.
    "$python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >"$venv/torch.txt"
    say 'Installing selfspec-tune and what it needs'
    local package=$root
    case $1 in
        dev) package+='[dev,humaneval]' ;;
        docs) package+='[docs]' ;;
    esac
    pip_install -c "$venv/torch.txt" -e "$package"
    install_compiler
    stamp run "$1"
}
