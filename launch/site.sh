#!/usr/bin/env bash
# Builds the site of these pages: bash launch/site.sh [FOLDER, or else site].
# A link to nothing is an error, as is a page that no list names.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
setup requirements-dev.txt
exec "$python" docs/make.py "${1:-site}"
