# Sourced by ./run, ./test and tests/postgres-builds: makes sure that what they need beside a Rust toolchain is
# installed. Says what it installs and why; asks nothing; without the rights it prints one error that lists the packages.

# What building and running the project needs.
lakebed_prepare() {
    local packages=() why=()
    if ! command -v cc >/dev/null 2>&1; then
        packages+=(build-essential)
        why+=("a C compiler and linker, for building")
    fi
    local default_bin=/usr/lib/postgresql/15/bin
    local pg_bin=${PG_BIN:-$default_bin}
    if [ ! -x "$pg_bin/postgres" ] && [ "${pg_bin%/}" != "$default_bin" ]; then
        echo "error: there is no $pg_bin/postgres; --pg-bin (or PG_BIN) is the directory of the programs of Postgres 15," \
            "16, 17 or 18" >&2
        return 1
    fi
    if [ ! -x "$pg_bin/postgres" ]; then
        packages+=(postgresql-15)
        why+=("PostgreSQL 15, the database that is served and that the tests compare with")
    fi
    if ! command -v cargo >/dev/null 2>&1; then
        echo "error: cargo is not on the PATH; install a Rust toolchain (rustup.rs) first" >&2
        return 1
    fi
    [ ${#packages[@]} -eq 0 ] && return 0
    printf 'installing %s\n' "${why[@]}" >&2
    lakebed_install "${packages[@]}"
}

# Installs Debian packages.
lakebed_install() {
    if [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; then
        echo "error: missing packages: $*. Install them as root: apt-get install $*" >&2
        return 1
    fi
    # A packaged cluster would take a port and memory that nobody asked for.
    lakebed_as_root mkdir -p /etc/postgresql-common
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        echo 'create_main_cluster = false' | lakebed_as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi
    lakebed_as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
    lakebed_as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2
}

# Says in words that a disk is too full: what fails for it later says something else, and much of it at once.
# Usage: lakebed_need_disk DIRECTORY GIB WHAT-FOR
lakebed_need_disk() {
    local free
    free=$(df --output=avail -B1M "$1" | tail -n 1)
    [ "$free" -ge $(($2 * 1024)) ] && return 0
    echo "error: $3 needs $2 GiB on the disk of $1, and $((free / 1024)) GiB are free there" >&2
    return 1
}

# Runs a command as root.
lakebed_as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}
