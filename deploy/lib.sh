# Sourced by deploy/demo and deploy/test: what both need.

# say TEXT: a line for the person at the terminal.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die TEXT…: says every line and ends.
die() {
    local line
    for line in "$@"; do say "$line"; done
    exit 1
}

# is_installed PACKAGE: whether dpkg has it installed.
is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# install_packages PACKAGE…: installs those that are missing, with apt-get, through
# sudo where not root.  Where that cannot be, says what to install by hand.
install_packages() {
    local missing=() package sudo=()
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        die "this is not Debian; install by hand what these Debian packages have:" \
            "  $*" \
            "and see README.md for what to do with it"
    fi
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null ||
            die "these packages are missing, and there is no sudo to install them with;" \
                "as root: apt-get install ${missing[*]}"
        sudo=(sudo)
    fi
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${sudo[@]}" apt-get -qq update ||
        say "apt-get update failed; trying with the lists that are there"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get could not install ${missing[*]}; its message stands above"
}

# require_own_leftovers: that pip can build in this checkout.
require_own_leftovers() {
    local left
    for left in build apachews.egg-info; do
        if [ -e "$left" ] && [ ! -w "$left" ]; then
            die "$left is another user's, of a pip install with sudo:" \
                "sudo rm -rf build apachews.egg-info"
        fi
    done
}

# make_venv DIRECTORY PYTHON: makes a virtual environment unless it is there and works.
make_venv() {
    if ! "$1/bin/python" -c '' 2>/dev/null; then
        say "making the environment $1"
        rm -rf "$1"
        "$2" -m venv "$1" || die "$2 -m venv failed; its message stands above"
    fi
}
