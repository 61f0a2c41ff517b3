# Sourced by ./run and ./test: makes sure that what the project needs beside a Rust toolchain is installed.
# Says what it installs and why; asks nothing; without the rights it prints one error that lists the packages.

lakebed_prepare() {
    local packages=() why=()
    if ! command -v cc >/dev/null 2>&1; then
        packages+=(build-essential)
        why+=("a C compiler and linker, for building")
    fi
    if [ ! -x "${PG_BIN:-/usr/lib/postgresql/15/bin}/postgres" ]; then
        packages+=(postgresql-15)
        why+=("PostgreSQL 15, the database that is served and that the tests compare with")
    fi
    if ! command -v cargo >/dev/null 2>&1; then
        echo "error: cargo is not on the PATH; install a Rust toolchain (rustup.rs) first" >&2
        return 1
    fi
    [ ${#packages[@]} -eq 0 ] && return 0

    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! sudo -n true 2>/dev/null; then
            echo "error: missing packages: ${packages[*]}. Install them as root: apt-get install ${packages[*]}" >&2
            return 1
        fi
        as_root=(sudo -n)
    fi
    printf 'installing %s\n' "${why[@]}" >&2
    # A packaged cluster would take a port and memory that nobody asked for.
    "${as_root[@]}" mkdir -p /etc/postgresql-common
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        echo 'create_main_cluster = false' | "${as_root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}" >&2
}
