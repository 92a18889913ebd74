#!/bin/sh
# Build what a release uploads from the last commit, check it, and try the wheel:
#
#     scripts/release.sh FOLDER
#
# FOLDER, which must not exist, gets the source distribution and the wheel that is built from it. The
# wheel is tried in an environment of its own, outside the checkout, with the dependencies that pip
# installs; or, if DEPENDENCIES names a site-packages folder, with those in it. Needs build and twine.
set -eu

out=$1
test ! -e "$out" || { echo "$out exists: give a folder that does not." >&2; exit 2; }
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "== Build"
mkdir "$work/source"
git -C "$root" archive HEAD | tar -x -C "$work/source"
"$python" -m build --outdir "$work/dist" "$work/source" > "$work/log" || { cat "$work/log"; exit 1; }
"$python" -m twine check --strict "$work"/dist/*

echo "== Install"
"$python" -m venv "$work/environment"
new="$work/environment/bin"
if [ -n "${DEPENDENCIES:-}" ]; then
    "$new/python" -m pip install --quiet --no-deps --no-index "$work"/dist/*.whl
    site=$("$new/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
    echo "$DEPENDENCIES" > "$site/dependencies.pth"
else
    "$new/python" -m pip install --quiet "$work"/dist/*.whl mypy
fi

echo "== Try"
cd "$work"
unset PYTHONPATH || true
version=$("$new/python" -c "import tokenprune; print(tokenprune.__version__)")
for file in "tokenprune-$version.tar.gz" "tokenprune-$version-py3-none-any.whl"; do
    test -f "dist/$file" || { echo "dist/$file is not there: $(ls dist)" >&2; exit 1; }
done
"$new/tokenprune" supported
# Where py.typed were missing, a type checker would take everything for Any.
cat > typed.py <<'PYTHON'
import tokenprune
import tokenprune.adapters

reveal_type(tokenprune.is_wrapped)
reveal_type(tokenprune.adapters.verified)
PYTHON
# Only this package's types are asked about; reading torch's and transformers' would take minutes.
cat > mypy.ini <<'INI'
[mypy]
ignore_missing_imports = true
[mypy-torch.*,transformers.*,numpy.*,PIL.*,huggingface_hub.*,rich.*,typer.*]
follow_imports = skip
INI
"$new/python" -m mypy typed.py > typed.log || true
# Releases of mypy write builtins.bool or bool.
sed 's/builtins\.//g' typed.log > plain.log
grep -F "def (model: object) -> bool" plain.log && grep -F "def () -> list[str]" plain.log \
    || { echo "mypy does not see the types of the installed package:" >&2; cat typed.log; exit 1; }

cd "$root"
mkdir -p "$(dirname "$out")"
mv "$work/dist" "$out"
echo "== $out: tokenprune $version"
