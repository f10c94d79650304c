# Functions for deploy/demo and deploy/test, which source this file.

# say TEXT: writes a line to the terminal.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# die TEXT…: writes every line and exits.
die() {
    local line
    for line in "$@"; do say "$line"; done
    exit 1
}

# is_installed PACKAGE: whether dpkg has it installed.
is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# install_packages PACKAGE…: installs missing packages with apt-get, through sudo unless run
# as root.  If that is not possible, it prints the packages to install by hand.
install_packages() {
    local missing=() package sudo=()
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        die "this is not Debian; install the equivalents of these Debian packages:" \
            "  $*" \
            "and follow README.md"
    fi
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null ||
            die "some packages are missing, and sudo is not available to install them;" \
                "as root: apt-get install ${missing[*]}"
        sudo=(sudo)
    fi
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    "${sudo[@]}" apt-get -qq update ||
        say "apt-get update failed; trying the existing package lists"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get could not install ${missing[*]}; see its message above"
}

# require_own_leftovers: exits if files of another user keep pip from building here.
require_own_leftovers() {
    local left
    for left in build apachews.egg-info; do
        if [ -e "$left" ] && [ ! -w "$left" ]; then
            die "$left belongs to another user, after a pip install with sudo; remove it:" \
                "sudo rm -rf build apachews.egg-info"
        fi
    done
}

# make_venv DIRECTORY PYTHON: creates a virtual environment, unless a working one exists.
make_venv() {
    if ! "$1/bin/python" -c '' 2>/dev/null; then
        say "creating the environment $1"
        rm -rf "$1"
        "$2" -m venv "$1" || die "$2 -m venv failed; see its message above"
    fi
}
