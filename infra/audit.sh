#!/usr/bin/env bash
# Known vulnerabilities of what a lock pins, by pip-audit: `make audit`. Fails on a finding.
#     infra/audit.sh constraints.txt [pip-audit's options, such as --ignore-vuln ID]
# PIP_AUDIT_VULNERABILITY_SERVICE (pypi or osv) and PIP_AUDIT_OSV_URL say who is asked. First comes a version that is known to be vulnerable:
# pip-audit says "No known vulnerabilities found" and succeeds also where its service knows nothing at all. Then the audit was not done;
# this is said, and with V2L_REQUIRE_AUDIT=1 it fails.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
audit=(pip-audit --no-deps --disable-pip --progress-spinner off --cache-dir "$folder")
echo 'jinja2==2.10' > "$folder/vulnerable.txt"  # PYSEC-2019-217 and others
"${audit[@]}" --format json -r "$folder/vulnerable.txt" > "$folder/found" 2> "$folder/said" || true  # it ends with 1 on a finding
if ! grep -q '"aliases"' "$folder/found"; then
  echo "NOT AUDITED: no service knows of vulnerabilities here: $(tail -n 1 "$folder/said" | cut -c -200)"
  [[ -z ${V2L_REQUIRE_AUDIT:-} ]]
  exit
fi
"${audit[@]}" --strict --require-hashes -r "$@"
