#!/bin/sh
# Installs Chromium and its driver from Debian's packages, if they are not there.
set -eu
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "test-browser: put chromium and chromedriver on the PATH; there is no apt-get to install them with" >&2
    exit 1
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "test-browser: chromium is not installed, and neither root nor sudo is here: apt-get install chromium chromium-driver" >&2
        exit 1
    fi
    as_root=sudo
fi
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends chromium chromium-driver
