# Functions for the scripts in deploy/ and bench/, which source this file.

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

# is_available PACKAGE: whether it is installed, or apt-get can install it.
is_available() {
    is_installed "$1" || [[ $(apt-cache policy "$1" 2>/dev/null) == *"  Candidate: "[!\(]* ]]
}

# system_name: for example "Debian 13", or "Debian sid" if the system has no version number.
system_name() (
    . /etc/os-release
    echo "${NAME%% *} ${VERSION_ID:-${VERSION_CODENAME:-}}"
)

# as_root COMMAND…: runs a command, through sudo unless run as root.
as_root() {
    local sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    "${sudo[@]}" "$@"
}

# apt_get ARGUMENT…: runs apt-get as root, without questions.
apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@"
}

# require_package_lists: fetches the lists of packages if the system has none, as in a new image.
require_package_lists() {
    compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null ||
        { [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; } ||
        apt_get update || say "apt-get update failed"
}

# install_packages PACKAGE…: installs missing packages with apt-get, through sudo unless run
# as root.  If that is not possible, it prints the packages to install by hand.
install_packages() {
    local missing=() package
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        die "this is not Debian; install the equivalents of these Debian packages:" \
            "  $*" \
            "other systems: docs/howto/other-systems.md"
    fi
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        die "some packages are missing, and sudo is not available to install them;" \
            "as root: apt-get install ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    apt_get update || say "apt-get update failed; trying the existing package lists"
    apt_get install -y --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get could not install ${missing[*]}; see its message above"
}

# checkout_files: prints the names of the checkout's files as they are now, each with a NUL:
# without what git ignores, or, in an unpacked source archive, without what builds and tests make.
checkout_files() {
    local file
    if [ -e .git ]; then
        # Root may read the checkout of another user.
        git -c safe.directory='*' ls-files -z --cached --others --exclude-standard
    else
        find . -type d '(' -path ./dist -o -path ./.tox -o -path ./.venv -o -name __pycache__ ')' \
            -prune -o -type f -print0
    fi | while IFS= read -r -d '' file; do
        [ ! -e "$file" ] || printf '%s\0' "$file" # git lists a file that was deleted
    done
}

# package_version VERSION: prints the version of Debian packages that are built from this checkout,
# and the seconds of its date.  A checkout at the tag vVERSION, or an unpacked source archive, has
# the version itself, without seconds.  Any other is before the release (~git and the time of the
# last commit), or, if the tag is among its ancestors, after it (+git).  Later commits have higher
# versions, so that apt upgrades to them.  The time of changes without a commit is now.
package_version() {
    local version=$1 sign="~" seconds=
    if [ -e .git ]; then
        local git=(git -c safe.directory='*')
        if [ -n "$("${git[@]}" status --porcelain)" ]; then
            seconds=$(date +%s)
        elif [ -z "$("${git[@]}" tag --list "v$version" --points-at HEAD)" ]; then
            seconds=$("${git[@]}" log -1 --format=%ct)
        fi
        [ -z "$("${git[@]}" tag --list "v$version" --merged HEAD)" ] || sign="+"
    fi
    if [ -n "$seconds" ]; then
        echo "$version${sign}git$(date --utc --date="@$seconds" +%Y%m%d%H%M%S) $seconds"
    else
        echo "$version"
    fi
}

# make_venv DIRECTORY PYTHON: creates a virtual environment, unless a working one exists.
make_venv() {
    if ! "$1/bin/python" -c '' 2>/dev/null; then
        say "creating the environment $1"
        rm -rf "$1"
        "$2" -m venv "$1" || die "$2 -m venv failed; see its message above"
    fi
}
