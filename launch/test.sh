#!/usr/bin/env bash
# Lint, format, types and tests: bash launch/test.sh [arguments of pytest].
# What is marked wide, slow or soak is left out; .ci/run runs the wide too.
# PYTHON=python3.12 bash launch/test.sh tests on that version.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
setup requirements-dev.txt

# What git tracks alone: a config of the user's own need not be formatted.
files=()
while IFS= read -r file; do
  [[ ! -f $file ]] || files+=("$file")
done < <(git ls-files '*.py' 2>/dev/null || true)
((${#files[@]})) || files=(.)
"$python" -m ruff check "${files[@]}"
"$python" -m ruff format --check "${files[@]}"
"$python" -m ty check --quiet --python "$python"
# The caller's -n and -m come last and win; worksteal keeps a file's tests
# together, and with them what they compiled.
exec "$python" -m pytest -n 2 --dist worksteal -m 'not slow and not soak and not wide' "$@"
